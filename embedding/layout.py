"""Which encoder wrote which rows and columns of a conditioning. Pure torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

CLIP_L, CLIP_G, T5 = 768, 1280, 4096  # widths of the encoders that are joined in one tensor
ROWS_PER_CHUNK = 77


@dataclass(frozen=True)
class Block:
    """Rows [start, stop) and columns [left, right) of a conditioning tensor [B, rows, width]; `encoder` is "" where only one wrote it all."""

    encoder: str
    start: int
    stop: int
    left: int
    right: int

    def of(self, cond: torch.Tensor) -> torch.Tensor:
        """The block's view of `cond`."""
        return cond[..., self.start : self.stop, self.left : self.right]


def blocks(cond: torch.Tensor, pooled: torch.Tensor | None) -> list[Block]:
    """The blocks of a conditioning [B, rows, width], read off its shape.

    SDXL  width 2048 with a pooled vector of 1280: CLIP-L | CLIP-G side by side
    SD 3  width 4096 with a pooled vector of 2048: rows of CLIP-L | CLIP-G | zeros, then rows of T5
    all others are one encoder's: a row is one vector, however wide
    """
    rows, width = cond.shape[-2:]
    summary = pooled.shape[-1] if pooled is not None else 0
    if width == CLIP_L + CLIP_G and summary == CLIP_G:
        return [Block("clip_l", 0, rows, 0, CLIP_L), Block("clip_g", 0, rows, CLIP_L, width)]
    if width == T5 and summary == CLIP_L + CLIP_G:
        cut = _clip_rows(cond)
        both = [Block("clip_l", 0, cut, 0, CLIP_L), Block("clip_g", 0, cut, CLIP_L, CLIP_L + CLIP_G)] if cut else []
        return both + ([Block("t5xxl", cut, rows, 0, width)] if cut < rows else [])
    return [Block("", 0, rows, 0, width)]


def pooled_parts(pooled: torch.Tensor) -> list[int]:
    """Widths of the encoders' parts of a pooled vector [B, width]: SD 3 joins CLIP-L and CLIP-G, all others have one."""
    return [CLIP_L, CLIP_G] if pooled.shape[-1] == CLIP_L + CLIP_G else [pooled.shape[-1]]


def _clip_rows(cond: torch.Tensor) -> int:
    """SD 3: how many whole chunks of leading rows are zero from column 2048 on, as the host pads CLIP and T5 never is."""
    empty = (cond[..., CLIP_L + CLIP_G :] == 0).all(dim=-1).reshape(-1, cond.shape[-2]).all(dim=0)
    leading = int(empty.long().cumprod(dim=0).sum())
    return leading - leading % ROWS_PER_CHUNK
