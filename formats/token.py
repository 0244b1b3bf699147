"""Learned tokens: a name for prompts, and input embeddings for each text encoder."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch

FILE_PREFIX = "embedding:"  # core's prefix of an embedding file in a prompt

# White space ends a token in every tokenizer; the other characters are prompt syntax of the host (emphasis, escapes, weights).
_FORBIDDEN = re.compile(r"[\s()\\:,\x00-\x1f\ue000-\uf8ff]")


@dataclass(frozen=True)
class LearnedToken:
    """A token that prompts write as `text`, e.g. `<v1>`.

    text        as written in a prompt; `embedding:name` for a file that is used by its name
    class_word  the subject's class, e.g. `dog`; "" if unknown
    vectors     encoder key -> float32 CPU tensor [n, width], n >= 1 vectors for the token in that encoder; the keys are those
                of core's embedding files (`clip_l`, `clip_g`, `clip_h`, `t5xxl`, ...)
    metadata    text that is saved with the file (method, steps, ...); never a path or a user name
    notes       sentences about vectors of the file that this CLIP cannot use; not saved
    """

    text: str
    class_word: str
    vectors: dict[str, torch.Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self):
        check_token_text(self.text)
        for key, value in self.vectors.items():
            if value.ndim != 2 or value.shape[0] < 1:
                raise ValueError(f"Token {self.text!r}: vectors for {key!r} have shape {list(value.shape)}, expected [count, width].")


def check_token_text(text: str) -> str:
    """Return `text` if a prompt can contain it as one token, else raise ValueError with the reason."""
    name = text.removeprefix(FILE_PREFIX)
    if not name:
        raise ValueError("The token is empty. Give it a name that prompts do not use otherwise, for example '<v1>'.")
    if text == "__metadata__":  # a safetensors file cannot have a tensor of this name
        raise ValueError(f"The token {text!r} is reserved by the file format. Try '<v1>'.")
    bad = _FORBIDDEN.search(name)
    if bad:
        better = re.sub(r"[^A-Za-z0-9-]", "", name) or "v1"
        raise ValueError(f"The token {text!r} contains {bad.group()!r}, which has another meaning in prompts. Try '<{better}>'.")
    if len(text) > 64 + len(FILE_PREFIX) * text.startswith(FILE_PREFIX):
        raise ValueError(f"The token {text[:20]!r}... has {len(text)} characters. Use at most 64.")
    return text
