"""A concept: the photos of one subject, the token that names it, and its class."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch

from ...formats.token import check_token_text
from ...formats.token_text import mentions

SMALLEST_SIDE = 16  # two latent cells: less carries no picture
MOST_REPEATS = 1000
AUTO = "auto"
# Rare entries of CLIP's vocabulary. The first three are those of ClassDiffusion's and Custom Diffusion's code, one for each concept.
RARE = ("ktn", "pll", "ucd", "hfx", "wgn", "kcr", "ghj", "tsn", "bjp", "ktv")
_ROUNDING = 1e-3  # how far a mask may lie outside of 0..1
_OVERSHOOT = 0.5  # how far a picture may: sharp resizing overshoots at edges; 0..255 or -1..1 is another scale


@dataclass(frozen=True)
class Concept:
    """One subject to learn, as Train Concept takes it.

    images        tensors [height, width, 3] in 0..1, sizes may differ
    token         as prompts will write it, e.g. `<v1>`
    class_word    the subject's class, e.g. `dog`
    masks         None, or one tensor [height, width] in 0..1 for each image: where the subject is
    prompts       one training prompt for each image, token and class filled in
    token_prompt  P_tp of the Semantic Preservation Loss, "a photo of a <v1> dog"
    class_prompt  P_cp, "a photo of a dog"
    initializer   the word whose embedding the token starts from; AUTO = a rare word that no other concept of the run has
    prior_images  pictures of the class for prior preservation, as `images`; may be empty
    repeats       how often this concept is shown, relative to the other concepts of a run
    """

    images: tuple[torch.Tensor, ...]
    token: str
    class_word: str
    prompts: tuple[str, ...]
    token_prompt: str
    class_prompt: str
    initializer: str = AUTO
    masks: tuple[torch.Tensor, ...] | None = None
    prior_images: tuple[torch.Tensor, ...] = field(default=())
    repeats: int = 1


def make_concept(
    images,
    token: str,
    class_word: str,
    *,
    masks=(),
    captions: str | list[str] = "",
    instance_prompt="a photo of a {token} {class}",
    class_prompt="a photo of a {class}",
    initializer=AUTO,
    prior_images=(),
    repeats: int = 1,
) -> Concept:
    """Check the inputs and make a `Concept` of them.

    images, prior_images  lists of batches [n, height, width, 3 or 4]; a fourth channel is alpha and becomes the mask
    masks                 list of batches [n, height, width]; one mask for each image, or none at all
    captions              one a line, or a list with one for each image, whose line breaks are spaces. A caption that does not name the
                          token gets the instance prompt in front. An empty one means the instance prompt. Fewer or more than there are
                          images is an error
    repeats               how often this concept is shown, in relation to the other concepts of a run
    Raises ValueError that names the input, what was found and what was expected.
    """
    check_token_text(token)
    class_word = class_word.strip()
    if not class_word:
        raise ValueError("class_word is empty. Say in one word what the subject is, for example 'dog' or 'teapot'.")
    pictures, alphas = _pictures(images, "images")
    if not pictures:
        raise ValueError("images is empty. Connect three to six photos of the subject.")
    given = _masks(masks)
    if given and len(given) != len(pictures):
        raise ValueError(f"masks: {len(given)} given for {len(pictures)} images. Give one mask for each image, in the same order, or none.")
    for index, (mask, picture) in enumerate(zip(given, pictures, strict=False)):
        if mask.shape != picture.shape[:2]:
            raise ValueError(
                f"masks: mask {index + 1} is {mask.shape[1]} x {mask.shape[0]}, its image is {picture.shape[1]} x {picture.shape[0]}. They must be of one size."
            )
    if not given and any(alpha is not None for alpha in alphas):
        given = [alpha if alpha is not None else torch.ones(picture.shape[:2]) for alpha, picture in zip(alphas, pictures, strict=True)]
    given = [_checked_mask(mask, index + 1) for index, mask in enumerate(given)]
    if given and all((mask == 1).all() for mask in given):
        given = []  # white everywhere, as loaders give for photos without transparency
    for index, mask in enumerate(given):
        if not mask.any():
            raise ValueError(f"masks: mask {index + 1} is empty, so nothing of its image would be learned. Paint the subject white.")
    if not 1 <= repeats <= MOST_REPEATS:
        raise ValueError(f"repeats is {repeats}; expected a whole number from 1 to {MOST_REPEATS}.")
    token_prompt = _fill(instance_prompt, token, class_word, "instance_prompt", must_name_token=True)
    lines = _lines(captions, len(pictures))
    if lines and len(lines) != len(pictures):
        raise ValueError(
            f"captions: {len(lines)} given for {len(pictures)} images. Give one line for each image, in the same order (an empty line means the instance prompt), or none."
        )
    return Concept(
        images=tuple(pictures),
        token=token,
        class_word=class_word,
        masks=tuple(given) or None,
        initializer=initializer.strip(),
        prompts=tuple(_caption(line, token, class_word, token_prompt) for line in lines) or (token_prompt,) * len(pictures),
        token_prompt=token_prompt,
        class_prompt=_fill(class_prompt, token, class_word, "class_prompt"),
        prior_images=tuple(_pictures(prior_images, "prior_images")[0]),
        repeats=repeats,
    )


def with_own_initializers(concepts: Sequence[Concept]) -> list[Concept]:
    """`concepts`, each with an initializer of its own: two tokens that start from one vector are the same concept at step 0.

    AUTO becomes the first word of RARE that is free. So does a second RARE[0], which was the default of older workflows. Raises ValueError for other equal ones.
    """
    chosen: list[str] = []
    for concept in concepts:
        word = concept.initializer or concept.class_word
        if word == AUTO or (word == RARE[0] and word in chosen):
            theirs = {other.initializer for other in concepts if other.initializer != RARE[0]}
            word = next((rare for rare in RARE if rare not in theirs and rare not in chosen), "")
        if word in chosen or not word:
            raise ValueError(
                f"Two concepts start from the same word ({word or 'auto'!r}), so they would be one and the same at the first step. "
                "Set the initializer of each Concept to auto, or to a word of its own."
            )
        chosen.append(word)
    return [replace(concept, initializer=word) for concept, word in zip(concepts, chosen, strict=True)]


def _masks(batches) -> list[torch.Tensor]:
    found = []
    for batch in batches:
        if not isinstance(batch, torch.Tensor) or batch.ndim not in (2, 3):
            shape = list(batch.shape) if isinstance(batch, torch.Tensor) else type(batch).__name__
            raise ValueError(f"masks: found {shape}, expected masks [count, height, width]. Core's 'Convert Image to Mask' makes them from pictures.")
        found += [mask.float() for mask in (batch if batch.ndim == 3 else batch[None])]
    return found


def _checked_mask(mask: torch.Tensor, number: int) -> torch.Tensor:
    """`mask` in 0..1. A loss multiplied by anything else trains on garbage."""
    if not torch.isfinite(mask).all():
        raise ValueError(f"masks: mask {number} contains values that are not numbers. Make or paint it again.")
    low, high = mask.min().item(), mask.max().item()
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ValueError(
            f"masks: mask {number} has values from {low:.3g} to {high:.3g}; expected 0 (left out) to 1 (learned). "
            "If it was resized, use 'bilinear' or 'nearest-exact', which stay within these."
        )
    return mask.clamp(0, 1)


def _lines(captions, count: int) -> list[str]:
    """One caption for each of `count` images (or fewer or more, as given); empty if all are empty."""
    given = [captions] if isinstance(captions, str) else [text for entry in captions for text in ([entry] if isinstance(entry, str) else entry)]
    if len(given) == 1 and count > 1:  # a text box
        given = given[0].split("\n")
    while len(given) > count and not given[-1].strip():  # trailing line breaks
        given.pop()
    lines = [" ".join(text.split()) for text in given]
    return lines if any(lines) else []


def _caption(line: str, token: str, class_word: str, token_prompt: str) -> str:
    line = line.replace("{token}", token).replace("{class}", class_word)
    if not line:
        return token_prompt
    return line if mentions(line, [token]) else f"{token_prompt}, {line}"


def _fill(template: str, token: str, class_word: str, name: str, must_name_token: bool = False) -> str:
    text = template.replace("{token}", token).replace("{class}", class_word).strip()
    if must_name_token and not mentions(text, [token]):
        raise ValueError(
            f"{name} is {template!r}, which does not name the token. Write {{token}} where {token!r} belongs, for example 'a photo of a {{token}} {{class}}'."
        )
    if not must_name_token and mentions(text, [token]):
        raise ValueError(f"{name} is {template!r}, which names the token {token!r}. It describes the class alone, for example 'a photo of a {{class}}'.")
    if not text:
        raise ValueError(f"{name} is empty. Its usual form is 'a photo of a {{class}}'.")
    return text


def fingerprint(concept: Concept) -> str:
    """A fingerprint of everything that is learned from: photos, masks, prompts, token."""
    digest = hashlib.sha256()
    for field_ in fields(concept):
        value = getattr(concept, field_.name)
        digest.update(field_.name.encode())
        for entry in value if isinstance(value, tuple) else (value,):
            is_picture = isinstance(entry, torch.Tensor)
            digest.update(repr(tuple(entry.shape) if is_picture else entry).encode())
            if is_picture:
                digest.update(entry.contiguous().numpy().data)
    return digest.hexdigest()


def _pictures(batches, name: str) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    pictures, alphas = [], []
    for batch in batches:
        if batch.ndim != 4 or batch.shape[-1] not in (1, 3, 4):
            raise ValueError(f"{name}: found a tensor of shape {list(batch.shape)}, expected pictures [count, height, width, 3].")
        for picture in batch:
            if min(picture.shape[:2]) < SMALLEST_SIDE:
                raise ValueError(
                    f"{name}: image {len(pictures) + 1} is {picture.shape[1]} x {picture.shape[0]} pixels; at least {SMALLEST_SIDE} x {SMALLEST_SIDE} are needed."
                )
            if not torch.isfinite(picture).all():
                raise ValueError(f"{name}: image {len(pictures) + 1} contains values that are no numbers.")
            low, high = picture.min().item(), picture.max().item()
            if low < -_OVERSHOOT or high > 1 + _OVERSHOOT:
                raise ValueError(f"{name}: image {len(pictures) + 1} has values from {low:.3g} to {high:.3g}; expected pictures in 0..1.")
            channels = picture.shape[-1]
            alphas.append(picture[..., 3].float() if channels == 4 and (picture[..., 3] < 1).any() else None)
            pictures.append(picture.expand(-1, -1, 3).float() if channels == 1 else picture[..., :3].float())
    return pictures, alphas
