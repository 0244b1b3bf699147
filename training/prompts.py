"""Prompt encoding for training. Prompts that training cannot change are encoded once."""

from __future__ import annotations

import torch

from ..host import text


class Prompts:
    """Encodes prompts with the current state of the text encoder.

    encoder   the host's trainable text encoders
    carrying  the CLIP that tokenizes; it carries the tokens with the vectors in training
    tokens    the texts of the tokens whose vectors are trained
    frozen    the encoder itself is not trained, so a prompt without trained tokens never changes
    """

    def __init__(self, encoder, carrying, tokens: list[str], frozen: bool):
        self.encoder, self.carrying, self.tokens, self.frozen = encoder, carrying, tokens, frozen
        self._known: dict[str, tuple] = {}

    def __call__(self, prompts: list[str]) -> list[tuple]:
        """One (conditioning, pooled) for each prompt; equal prompts are encoded once."""
        live = {prompt: self.encoder.encode(self.carrying, prompt) for prompt in dict.fromkeys(prompts) if not self._constant(prompt)}
        return [live[prompt] if prompt in live else self._lookup(prompt) for prompt in prompts]

    def _constant(self, prompt: str) -> bool:
        return self.frozen and not text.mentions(prompt, self.tokens)

    def _lookup(self, prompt: str) -> tuple:
        if prompt not in self._known:
            with torch.no_grad():
                self._known[prompt] = self.encoder.encode(self.carrying, prompt)
        return self._known[prompt]


def without_token(prompt: str, token: str, class_word: str) -> str:
    """The prompt with the token replaced by the class word: "a <v1> dog asleep" -> "a dog asleep"."""
    return text.replace_tokens(prompt, {token: class_word})
