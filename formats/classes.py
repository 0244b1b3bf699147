"""Classes of subjects and their everyday words, to notice a prompt that puts a token before a word of another class. Text only.

This is only a hint: unlisted words are ignored, and toys and figures may be of any class.
"""

from __future__ import annotations

import re

_CLASSES = [
    set(line.split())
    for line in """
    dog puppy pup hound bulldog terrier retriever spaniel corgi poodle beagle husky chihuahua dachshund
    cat kitten kitty tomcat
    bear cub panda
    bird parrot owl duck duckling chicken hen rooster goose swan penguin eagle pigeon sparrow
    horse pony foal mare stallion donkey mule zebra unicorn
    rabbit bunny hare
    cow bull calf ox
    fox
    wolf
    lion lioness tiger leopard panther
    mouse rat hamster squirrel
    fish shark goldfish dolphin whale
    monkey ape gorilla chimpanzee
    elephant
    turtle tortoise
    frog toad
    person man woman boy girl child kid baby toddler lady gentleman guy human
    car truck van bus vehicle automobile suv jeep
    bicycle bike motorcycle motorbike scooter
    boat ship yacht canoe
    airplane plane aircraft jet helicopter
    chair armchair sofa couch bench stool
    table desk
    cup mug glass goblet
    teapot kettle jug pitcher
    bowl plate dish
    vase pot
    bottle flask can
    lamp lantern candle
    clock watch
    shoe sneaker boot sandal slipper
    backpack bag handbag purse suitcase
    hat cap helmet
    guitar violin piano drum trumpet
    house building castle tower barn lighthouse church cottage
    flower rose tulip sunflower plant tree cactus
    """.splitlines()
    if line.strip()
]


def other_class(text: str, end: int, class_word: str) -> str | None:
    """The word in `text` right after position `end`, where a mention ends, if it is of another class than `class_word`; else None."""
    following = re.match(r"[\s)]*(?::[\d.]+\))?[\s)(]*(?P<word>[^\W\d_]+)\s*(?P<next>[^\W\d_]*)", text[end:])
    own = class_word.lower().split()
    if following is None or not own:
        return None
    word, head = following["word"], own[-1]
    if word.lower() in own or following["next"].lower() in own:  # "a <v1> dog bowl" for a bowl
        return None
    classes = _class_index(word), _class_index(head)
    return word if None not in classes and classes[0] != classes[1] else None


def _class_index(word: str) -> int | None:
    word = word.lower()
    for index, words in enumerate(_CLASSES):
        if word in words or word.removesuffix("s") in words or word.removesuffix("es") in words:
            return index
    return None
