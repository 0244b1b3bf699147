"""Which row of the class prompt is the partner of which row of the concept's prompt. Pure torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import torch

NONE = -1  # a row without a partner


@dataclass(frozen=True)
class Special:
    """The ids that an encoder puts around the words; None where it has none."""

    start: int | None
    end: int | None
    pad: int | None


def by_token(chunks: Sequence[Sequence], class_chunks: Sequence[Sequence], special: Special) -> torch.Tensor:
    """Partners by what stands at the rows: [rows of the prompt], -1 where there is none.

    chunks, class_chunks   for each chunk what stands at its rows: a vocabulary id, or a vector (a learned token)

    Equal words meet in the order of the prompts, over the borders of chunks. Between two equal stretches the rows of one
    prompt meet those of the other one by one from the left (V* meets the class word that stands for it); what is left
    over has no partner. The start meets the start and the end meets the end in the chunk of the same number; padding
    meets padding by its place, counted from the end of the words, and the last one where there is more of it.
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
    """Ids as they are; vectors by the first equal one."""
    if not torch.is_tensor(token):
        return int(token)
    for index, vector in enumerate(seen):
        if vector is token or (vector.shape == token.shape and torch.equal(vector, token)):
            return ("vector", index)
    seen.append(token)
    return ("vector", len(seen) - 1)
