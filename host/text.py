"""The host's text encoders: CLIP objects that carry learned tokens, and the parts of an encoder that training and TEA need.

The tokenizer carries a token, not the encoder's weights: the host's token lists may hold vectors instead of ids. So a clone of a CLIP with a
tokenizer of its own is enough, and the incoming CLIP does not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from ..formats.token import LearnedToken
from ..formats.token_text import mentions, replace_tokens, wrong_classes
from . import text_rows
from .carrying import carried_by, carrying_tokenizer
from .encoders import (
    embed_word,
    embedding_folders,
    embedding_widths,
    encoder_model,
    encoder_tokenizers,
    input_embeddings,
    part_of_model,
    word_ids,
)

__all__ = [
    "carried_tokens",
    "carry_tokens",
    "clash",
    "embed_word",
    "embedding_folders",
    "embedding_widths",
    "encoder_model",
    "encoder_tokenizers",
    "input_embeddings",
    "mentions",
    "part_of_model",
    "replace_tokens",
    "replaced_tokens",
    "spelling_hints",
    "word_ids",
    "wrong_classes",
]


def spelling_hints(clip, words: str) -> list[str]:
    """A hint for each of `words` that CLIP splits into pieces although one typo separates it from a word of the vocabulary ("dgo").

    Rare words and names are split too, so this is only a hint. The vocabularies of other encoders do not mark whole words.
    """
    vocabularies = ((key, part.tokenizer.get_vocab()) for key, part in encoder_tokenizers(clip).items())
    key, vocabulary = next(((key, known) for key, known in vocabularies if "a</w>" in known), ("", {}))
    hints = []
    for word in dict.fromkeys(words.lower().split()):
        if not vocabulary or not word.isalpha() or len(word_ids(clip, key, word)) < 2:
            continue
        near = [other for other in _one_typo_away(word) if f"{other}</w>" in vocabulary]
        if near:
            meant = min(near, key=lambda other: (sorted(other) != sorted(word), set(other) != set(word), vocabulary[f"{other}</w>"]))
            hints.append(f"The text encoder does not know the word {word!r}. Did you mean {meant!r}? If {word!r} is right, ignore this.")
    return hints


def _one_typo_away(word: str) -> set[str]:
    """Words of at least three letters that differ from `word` in one letter or one swap and have its first letter, or its first two swapped."""
    cuts = [(word[:at], word[at:]) for at in range(len(word) + 1)]
    letters = "abcdefghijklmnopqrstuvwxyz"
    swapped = {left + right[1] + right[0] + right[2:] for left, right in cuts if len(right) > 1}
    dropped = {left + right[1:] for left, right in cuts if right}
    changed = {left + letter + right[1:] for left, right in cuts if right for letter in letters}
    added = {left + letter + right for left, right in cuts for letter in letters}
    same_start = {other for other in dropped | changed | added if other[:1] == word[0]}
    return {other for other in swapped | same_start if len(other) > 2} - {word}


def clash(clip, text: str) -> str | None:
    """The meaning that `text` already has for this CLIP, as a noun phrase for a message; None if a new token may use it."""
    if text in carried_tokens(clip):
        return "a token that this CLIP carries"
    for key, part in encoder_tokenizers(clip).items():
        ids = word_ids(clip, key, text)
        if len(ids) == 1 and ids[0] != getattr(part.tokenizer, "unk_token_id", None):
            return f"a word of the vocabulary of {key}"
    return None


def carry_tokens(clip, tokens: Iterable[LearnedToken]):
    """A clone of `clip` that carries `tokens` besides the tokens that it already carries. Of two tokens with the same text the new one wins.

    An encoder for which a token has no vectors reads the class word instead, or nothing if the class word follows anyway. Gradients flow into
    vectors that require them. Raises ValueError if a token has vectors for none of the encoders, or vectors of another width.
    """
    carried = {**carried_tokens(clip), **{token.text: token for token in tokens}}
    parts = encoder_tokenizers(clip)
    for token in carried.values():
        for key in token.vectors.keys() & parts.keys():
            expected, width = int(input_embeddings(clip, key).shape[-1]), token.vectors[key].shape[-1]
            if width != expected:
                raise ValueError(
                    f"Token {token.text!r} has vectors of width {width} for {key}, this CLIP expects {expected}: it was learned on another model family. "
                    "Load the checkpoint family that it was trained on."
                )
        if not token.vectors.keys() & parts.keys():
            raise ValueError(
                f"Token {token.text!r} was learned for {', '.join(token.vectors) or 'no encoder'}; this CLIP has {', '.join(parts)}. "
                "Load the checkpoint family that it was trained on."
            )
    clone = clip.clone()
    clone.tokenizer = carrying_tokenizer(clip.tokenizer, carried)
    text_rows.carry(clone)
    return clone


def replaced_tokens(clip, tokens: Iterable[LearnedToken]) -> list[str]:
    """A sentence for each of `tokens` whose text `clip` already carries with other vectors: from `carry_tokens` on, prompts mean the new one."""
    carried = carried_tokens(clip)
    return [
        f"This CLIP already carried another token {token.text!r}; prompts now mean the one of this concept. To use both in one prompt, train one of them with another token."
        for token in tokens
        if token.text in carried and not _same_vectors(token.vectors, carried[token.text].vectors)
    ]


def _same_vectors(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value.cpu(), b[key].cpu()) for key, value in a.items())


def carried_tokens(clip) -> dict[str, LearnedToken]:
    """Token text -> token, for all learned tokens that `clip` carries."""
    return carried_by(clip.tokenizer)
