"""Score pictures and prompts: equalize sizes, replace tokens by class words, call the scorers, return a report."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from ..formats.token import check_token_text
from ..formats.token_text import replace_tokens
from .metrics import Report, Scorer, evaluate


def score(images, references, prompts: str, scorers: Sequence[Scorer], token: str = "", class_word: str = "") -> Report:
    """Scores pictures against references and prompts.

    images, references  lists of batches [n, height, width, 3 or 4] in 0..1; sizes may differ
    prompts             one a line: one for each picture, in order, or one for all
    token, class_word   the class word replaces the token when a prompt is compared with a picture (DreamBooth, section 4.1)

    If several prompts have several pictures each, the bootstrap resamples whole prompts. Raises ValueError as `evaluate` does, and
    if there is no prompt.
    """
    lines = [line.strip() for line in prompts.splitlines() if line.strip()]
    if not lines:
        raise ValueError("prompts is empty. Write the prompt of the pictures, or one line for each picture.")
    pictures = together(images, "images")
    lines = lines * (len(pictures) if len(lines) == 1 else 1)
    class_words = {check_token_text(token.strip()): class_word} if token.strip() else {}
    spoken = [replace_tokens(line, class_words) for line in lines]
    groups = lines if 1 < len(set(lines)) < len(lines) else ()
    report = evaluate(pictures, together(references, "references"), spoken, scorers, groups)
    report.prompts = lines
    return report


def together(batches, name: str) -> torch.Tensor:
    """One tensor [n, 3, height, width] of all pictures. If sizes differ: their center squares, scaled to the smallest one's side."""
    pictures = [picture[..., :3].movedim(-1, 0).float() for batch in batches for picture in batch]  # HWC -> CHW
    if not pictures:
        raise ValueError(f"{name} is empty. Connect at least one picture.")
    if len({picture.shape for picture in pictures}) > 1:
        side = min(min(picture.shape[1:]) for picture in pictures)
        pictures = [functional.interpolate(_square(picture)[None], (side, side), mode="bicubic", antialias=True)[0].clamp(0, 1) for picture in pictures]
    return torch.stack(pictures).cpu()


def _square(picture: torch.Tensor) -> torch.Tensor:
    height, width = picture.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return picture[:, top : top + side, left : left + side]
