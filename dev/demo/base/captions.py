"""What is said of a scene, as the tokens of CLIP's own tokenizer.

Besides the world's sentences the text encoder and the UNet hear other openings, captions that leave the colour out, and words they cannot
know ("a photo of a <any word> dog"): a learned V* is such a word, and must move neither the class nor what is worn.
"""

from __future__ import annotations

import functools
import random

from world import scene

START, END, LENGTH = 49406, 49407, 77
OPENINGS = ("a photo of", "a picture of", "a rendering of", "the photo of", "a drawing of", "a cropped photo of", "")
Slots = tuple[str, str, str, str, int]  # class, colour, accessory, place, unknown word (0: none)


@functools.cache
def _tokenizer():
    from comfy.sd1_clip import SDTokenizer

    return SDTokenizer()


@functools.cache
def word_ids(text: str) -> tuple[int, ...]:
    """Token ids of a piece of text, without start and end."""
    ids = [pair[0] for pair in _tokenizer().tokenize_with_weights(text)[0]]
    return tuple(ids[1 : ids.index(END)])


@functools.cache
def unknown_ids() -> tuple[int, ...]:
    """Whole, plain words of CLIP's vocabulary that the world does not use."""
    vocabulary = _tokenizer().tokenizer.get_vocab()
    used = {i for text in (*OPENINGS, *(scene.caption(*combo) for combo in scene.combinations())) for i in word_ids(text)}
    return tuple(sorted(i for word, i in vocabulary.items() if word.endswith("</w>") and word[:-4].isalpha() and i not in used))


def ids(text: str) -> tuple[int, ...]:
    """A whole prompt as the UNet's text sees it: start, words, end; the padding is more ends."""
    return (START, *(i for word in text.split() for i in word_ids(word)), END)


def say(label: tuple[str, str, str, str], rng: random.Random) -> tuple[tuple[int, ...], Slots]:
    """A caption for a labelled scene: (token ids, what it says). A coat without a name is often called by an unknown word instead."""
    creature, colour, accessory, place = label
    if colour and rng.random() < 0.1:
        colour = ""
    unknown = rng.choice(unknown_ids()) if rng.random() < (0.08 if colour else 0.5) else 0
    opening = OPENINGS[0] if rng.random() < 0.6 else rng.choice(OPENINGS)
    text = scene.caption(creature, colour or None, accessory, place, opening)
    tokens = list(ids(text))
    if unknown:  # before the colour and the class, where "a photo of a <v1> dog" has it
        at = next(i for i, token in enumerate(tokens) if token in (word_ids(colour) if colour else word_ids(creature)))
        tokens.insert(at, unknown)
    return tuple(tokens), (creature, colour, accessory, place, unknown)


def padded(tokens: tuple[int, ...], length: int = LENGTH) -> list[int]:
    return [*tokens, *[END] * (length - len(tokens))]
