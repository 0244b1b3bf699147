"""Token SLERP, TEA on the token (equation 1): the learned input embedding of V* is rotated toward its class word's. Pure torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch

from ..formats.token import LearnedToken
from .slerp import adjust


def class_vector(pieces: torch.Tensor) -> torch.Tensor:
    """One vector [1, width] for a class word of several vocabulary pieces [count, width].

    The direction of their mean, at the mean of their norms: the plain mean of unrelated vectors is too short by sqrt(count) and would
    shrink V*. A single piece is returned bit for bit.
    """
    if len(pieces) == 1:
        return pieces
    mean = pieces.mean(dim=0, keepdim=True)
    length = torch.linalg.vector_norm(mean, dim=-1, keepdim=True)
    return mean / length.clamp(min=torch.finfo(mean.dtype).tiny) * torch.linalg.vector_norm(pieces, dim=-1).mean()


def adjust_token(token: LearnedToken, class_word: str, class_pieces: Mapping[str, torch.Tensor], alpha: float, beta: float, norm: str) -> LearnedToken:
    """`token` with each of its vectors adjusted toward its class, in every encoder of `class_pieces` (encoder key -> [count, width])."""
    vectors = {key: adjust(value, class_vector(class_pieces[key]), alpha, beta, norm) if key in class_pieces else value for key, value in token.vectors.items()}
    note = f"{norm} alpha={alpha:g} beta={beta:g} {class_word}"
    history = f"{token.metadata['tea']}; {note}" if "tea" in token.metadata else note
    return dataclasses.replace(token, class_word=class_word, vectors=vectors, metadata={**token.metadata, "tea": history})
