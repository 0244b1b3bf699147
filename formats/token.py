"""A learned token: the words that name it and one group of input embeddings for each text encoder."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch

FILE_PREFIX = "embedding:"  # how core calls an embedding file in a prompt

# White space ends a token in every tokenizer; the others are prompt syntax of the host (emphasis, escapes, weights).
_FORBIDDEN = re.compile(r"[\s()\\:,\x00-\x1f\ue000-\uf8ff]")


@dataclass(frozen=True)
class LearnedToken:
    """What a prompt may call by `text`, e.g. `<v1>`.

    text        as it is written in a prompt; `embedding:name` for a file that people call that way
    class_word  the kind the subject belongs to, e.g. `dog`; "" where nobody said it
    vectors     encoder key -> float32 CPU tensor [n, width]; the keys are those of core's own embedding files
                (`clip_l`, `clip_g`, `clip_h`, `t5xxl`, ...), n >= 1 vectors stand for the token in that encoder
    metadata    free text kept with the file (method, steps, ...); never a path or a user name
    notes       sentences about what its file holds and this CLIP has no use for; never saved
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
    """Return `text` if a prompt can carry it as one token, else raise ValueError with the reason."""
    name = text.removeprefix(FILE_PREFIX)
    if not name:
        raise ValueError("The token is empty. Give it a name that no prompt uses otherwise, for example '<v1>'.")
    if text == "__metadata__":  # the one tensor name that a safetensors file cannot have
        raise ValueError(f"The token {text!r} is reserved by the file format. Try '<v1>'.")
    bad = _FORBIDDEN.search(name)
    if bad:
        better = re.sub(r"[^A-Za-z0-9-]", "", name) or "v1"
        raise ValueError(f"The token {text!r} contains {bad.group()!r}, which prompts use for something else. Try '<{better}>'.")
    if len(text) > 64 + len(FILE_PREFIX) * text.startswith(FILE_PREFIX):
        raise ValueError(f"The token {text[:20]!r}... has {len(text)} characters; at most 64 fit.")
    return text
