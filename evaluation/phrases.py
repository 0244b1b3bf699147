"""The words that Semantic Drift measures with: scenes for any kind of subject, and the adjectives of its kind."""

# `{}` is the subject. Half are short captions, half are sentences in which the scene has most of the words.
CONTEXTS = (
    "a photo of a {} on the beach",
    "a photo of a {} in the snow",
    "a {} in front of the Eiffel Tower",
    "a {} on top of a wooden table",
    "a {} under a red umbrella in heavy rain",
    "a {} next to a yellow bicycle",
    "an oil painting of a {} in the style of van Gogh",
    "a pencil sketch of a {} with three children",
    "a {} beside a bowl of oranges on a marble counter",
    "a {} on a boat in the middle of a lake at dawn",
    "two people taking a picture of a {} in a museum",
    "a {} in a library full of old books",
    "a {} at night under the neon signs of Tokyo",
    "a {} in a field of sunflowers with mountains behind",
    "a black and white photograph of a {} on a railway platform",
    "a {} between a piano and an open window",
    "a {} wrapped in a blue scarf next to a fireplace",
    "a street market with a {} among baskets of vegetables",
    "a {} covered in flower petals, seen from above",
    "a {} in a spaceship, looking at the stars",
    "a watercolor of a {} near a lighthouse in a storm",
    "a {} on a cobblestone street in the autumn leaves",
    "a child painting a {} on a large canvas",
    "a {} reflected in a puddle after the rain",
    "on a quiet Sunday morning the family found a {} at the end of the garden path",
    "despite the heavy rain a {} could be seen from the window of the last bus",
    "after the concert the musicians gathered around a {} and opened a bottle of wine",
    "at the crowded harbour a {} stood between crates of fish and coils of rope",
    "the old photographer spent the whole winter waiting for a {} in the morning fog",
    "in the middle of the desert a {} cast a long shadow over the burning sand",
    "the children built a castle of cardboard boxes and put a {} on its highest tower",
    "during the parade a {} was carried through the streets under a rain of confetti",
    "the chef decorated a cake with strawberries and placed a {} made of sugar on top",
    "inside the greenhouse a {} appeared behind the leaves of a giant tropical plant",
    "a traveller with a heavy backpack stopped to look at a {} beside the mountain trail",
    "the newspaper printed a picture of a {} next to the mayor and the football team",
    "through the telescope the astronomer saw the moon rise behind a {} on the hill",
    "the theatre was empty except for a {} in the golden light of the stage",
    "when the snow melted a {} was found near the frozen river by two hikers",
    "a knight in silver armour guards a {} at the gate of a ruined castle",
)

ADJECTIVES = tuple(
    (
        "big small young old white black brown red blue green yellow golden grey dark "
        "bright pale spotted striped furry smooth shiny dusty wet dry clean dirty soft hard "
        "heavy light tall short long round thin fat strong weak fast slow happy sad "
        "angry calm funny serious brave shy friendly lonely lazy busy quiet loud wild gentle "
        "proud curious sleepy hungry beautiful ugly cute strange famous rare common modern ancient tiny "
    ).split()
)
