"""Alignment of two prompts: the partner in the class prompt for each row of the concept's prompt. Pure torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch

NONE = -1  # a row without a partner


@dataclass(frozen=True)
class Special:
    """The ids of an encoder's start, end and padding tokens; None if it has no such token."""

    start: int | None
    end: int | None
    pad: int | None


def by_token(chunks: Sequence[Sequence], class_chunks: Sequence[Sequence], special: Special) -> torch.Tensor:
    """The partner of each row, by its token: [rows of the prompt], -1 = no partner.

    chunks, class_chunks   for each chunk the tokens of its rows: a vocabulary id, or a vector (a learned token)

    Equal words are paired in the order of the prompts, across chunks. Between two equal stretches, rows are paired one by one from the
    left (V* with the class word that replaces it); rows left over have no partner. Start tokens and end tokens are paired chunk by chunk.
    Padding is paired by its position after the words; surplus padding is paired with the last one.
    """
    words, frames = _words(chunks, special)
    class_words, class_frames = _words(class_chunks, special)
    partner = torch.full((sum(map(len, chunks)),), NONE, dtype=torch.long)
    seen: list[torch.Tensor] = []
    left, right = ([_hashable(token, seen) for _, token in side] for side in (words, class_words))
    for kind, i1, i2, j1, j2 in SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if kind in ("equal", "replace"):
            for (row, _), (class_row, _) in zip(words[i1:i2], class_words[j1:j2], strict=False):
                partner[row] = class_row
    for sides, class_sides in zip(frames, class_frames, strict=False):
        for rows, class_rows in zip(sides, class_sides, strict=True):
            for place, row in enumerate(rows if class_rows else ()):
                partner[row] = class_rows[min(place, len(class_rows) - 1)]
    return partner


def _words(chunks, special: Special):
    """([(row, token)] of all words, [(rows before the words, rows after them)] of each chunk)."""
    words, frames, offset = [], [], 0
    for chunk in chunks:
        ids = [None if torch.is_tensor(token) else token for token in chunk]
        first = ids.index(special.start) + 1 if special.start is not None and special.start in ids else 0
        if special.end is not None and special.end in ids[first:]:
            last = ids.index(special.end, first)
        else:
            last = len(ids)
            while last > first and ids[last - 1] == special.pad and special.pad is not None:
                last -= 1
        words += [(offset + i, chunk[i]) for i in range(first, last)]
        frames.append((range(offset, offset + first), range(offset + last, offset + len(chunk))))
        offset += len(chunk)
    return words, frames


def _hashable(token, seen: list[torch.Tensor]):
    """A hashable key: an id itself, a vector by the index of the first equal one."""
    if not torch.is_tensor(token):
        return int(token)
    for index, vector in enumerate(seen):
        if vector is token or (vector.shape == token.shape and torch.equal(vector, token)):
            return ("vector", index)
    seen.append(token)
    return ("vector", len(seen) - 1)
