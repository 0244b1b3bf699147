"""The host's text encoders: CLIP objects that carry learned tokens, and the parts of an encoder that training and TEA need.

A token is carried by the tokenizer, not by the encoder's weights: the host's token lists may hold vectors in place of
ids, so a clone with its own tokenizer is all it takes, and the incoming CLIP (and everybody who shares it) stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..formats.token import LearnedToken
from ..formats.token_text import mentions, replace_tokens, wrong_kinds
from .carrying import carried_by, carrying, tokenizer_parts
from .types import Clip

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
    "misspelt",
    "part_of_model",
    "replace_tokens",
    "word_ids",
    "wrong_kinds",
]


def encoder_tokenizers(clip: Clip) -> dict[str, object]:
    """Encoder key (`clip_l`, `clip_g`, `t5xxl`, ...) -> the host's SDTokenizer of that encoder, in the host's order.

    Only encoders that are there: the host tokenizes for all of a family's (SD 3 without T5, the SDXL refiner).
    """
    model = clip.cond_stage_model
    return {part.embedding_key: part for name, part in tokenizer_parts(clip.tokenizer) if _model_of(model, name, part.embedding_key) is not None}


def embedding_widths(clip: Clip) -> dict[str, int]:
    """Encoder key -> width of its input embeddings, as embedding files are checked against it."""
    return {key: int(input_embeddings(clip, key).shape[-1]) for key in encoder_tokenizers(clip)}


def embedding_folders(clip: Clip) -> list[str]:
    """Where the host looks for `embedding:name` on behalf of this CLIP."""
    for part in encoder_tokenizers(clip).values():
        if part.embedding_directory:
            return [part.embedding_directory] if isinstance(part.embedding_directory, str) else list(part.embedding_directory)
    return []


def encoder_model(clip: Clip, key: str) -> torch.nn.Module:
    """The host's SDClipModel of the encoder `key`."""
    return part_of_model(clip.cond_stage_model, clip, key)


def part_of_model(cond_stage_model: torch.nn.Module, clip: Clip, key: str) -> torch.nn.Module:
    """Like `encoder_model`, in another instance of the same text model (a training copy)."""
    for name, part in tokenizer_parts(clip.tokenizer):
        if part.embedding_key == key and (model := _model_of(cond_stage_model, name, key)) is not None:
            return model
    raise ValueError(f"This CLIP has no encoder {key!r}; it has {', '.join(encoder_tokenizers(clip)) or 'none'}.")


def word_ids(clip: Clip, key: str, text: str) -> list[int]:
    """The vocabulary ids of `text` in the encoder `key`, without start, end and padding."""
    part = encoder_tokenizers(clip)[key]
    end = -1 if part.tokenizer_adds_end_token else None
    return list(part.tokenizer(text)["input_ids"][part.tokens_start : end])


def input_embeddings(clip: Clip, key: str) -> torch.Tensor:
    """The vocabulary's embedding matrix of the encoder `key`: [vocabulary, width], as the host holds it (any device and dtype)."""
    return encoder_model(clip, key).transformer.get_input_embeddings().weight


def embed_word(clip: Clip, key: str, text: str) -> torch.Tensor:
    """The input embeddings of `text` in the encoder `key`: [count, width], float32 on the CPU, one row for each vocabulary piece."""
    ids = word_ids(clip, key, text)
    if not ids:
        raise ValueError(f"{text!r} gives no word in the vocabulary of {key}. Write the kind of the subject, for example 'dog'.")
    table = encoder_model(clip, key).transformer.get_input_embeddings()
    with torch.no_grad():
        return table(torch.tensor([ids], device=table.weight.device), out_dtype=torch.float32)[0].to("cpu", torch.float32)


def misspelt(clip: Clip, words: str) -> list[str]:
    """A sentence for each of `words` that a CLIP reads in pieces although a word of its vocabulary is one slip of the pen away: "dgo".

    Rare words and names come in pieces, too, so this is a hint. Other encoders have no whole words to compare with.
    """
    vocabularies = ((key, part.tokenizer.get_vocab()) for key, part in encoder_tokenizers(clip).items())
    key, vocabulary = next(((key, known) for key, known in vocabularies if "a</w>" in known), ("", {}))
    said = []
    for word in dict.fromkeys(words.lower().split()):
        if not vocabulary or not word.isalpha() or len(word_ids(clip, key, word)) < 2:
            continue
        near = [other for other in _one_slip_away(word) if f"{other}</w>" in vocabulary]
        if near:
            meant = min(near, key=lambda other: (sorted(other) != sorted(word), set(other) != set(word), vocabulary[f"{other}</w>"]))
            said.append(f"The text encoder does not know the word {word!r}. Did you mean {meant!r}? If it is right as it is, all is well.")
    return said


def _one_slip_away(word: str) -> set[str]:
    """Words of at least three letters that begin like `word`, or swap its first two letters, and differ in one letter or one swap."""
    cuts = [(word[:at], word[at:]) for at in range(len(word) + 1)]
    letters = "abcdefghijklmnopqrstuvwxyz"
    swapped = {left + right[1] + right[0] + right[2:] for left, right in cuts if len(right) > 1}
    dropped = {left + right[1:] for left, right in cuts if right}
    changed = {left + letter + right[1:] for left, right in cuts if right for letter in letters}
    added = {left + letter + right for left, right in cuts for letter in letters}
    same_start = {other for other in dropped | changed | added if other[:1] == word[0]}
    return {other for other in swapped | same_start if len(other) > 2} - {word}


def clash(clip: Clip, text: str) -> str | None:
    """What `text` means already to this CLIP, in words for a message; None when a new token may take it."""
    if text in carried_tokens(clip):
        return "a token that this CLIP carries"
    for key, part in encoder_tokenizers(clip).items():
        ids = word_ids(clip, key, text)
        if len(ids) == 1 and ids[0] != getattr(part.tokenizer, "unk_token_id", None):
            return f"a word of the vocabulary of {key}"
    return None


def carry_tokens(clip: Clip, tokens: Iterable[LearnedToken]) -> Clip:
    """A clone of `clip` whose prompts may name `tokens`, besides those that it carries already (same text: the new one wins).

    An encoder for which a token has no vectors reads the class word instead, or nothing where the class word follows anyway.
    Gradients flow into vectors that require them. Raises ValueError when vectors do not fit the encoder's width.
    """
    carried = {**carried_tokens(clip), **{token.text: token for token in tokens}}
    parts = encoder_tokenizers(clip)
    for token in carried.values():
        for key in token.vectors.keys() & parts.keys():
            width, found = int(input_embeddings(clip, key).shape[-1]), token.vectors[key].shape[-1]
            if found != width:
                raise ValueError(
                    f"Token {token.text!r} has vectors of width {found} for {key}, this CLIP expects {width}: it was learned on another model family."
                )
        if not token.vectors.keys() & parts.keys():
            raise ValueError(f"Token {token.text!r} was learned for {', '.join(token.vectors) or 'no encoder'}; this CLIP has {', '.join(parts)}.")
    clone = clip.clone()
    clone.tokenizer = carrying(clip.tokenizer, carried)
    return clone


def carried_tokens(clip: Clip) -> dict[str, LearnedToken]:
    """Token text -> token, for all that `clip` carries."""
    return carried_by(clip.tokenizer)


def _model_of(cond_stage_model: torch.nn.Module, name: str, key: str):
    """The encoder of the tokenizer `key` that stands at the attribute `name`; None where this model comes without it.

    Most families use one name on both sides; single-encoder ones keep theirs in `clip` ("clip_t5xxl" tokenizes for "t5xxl").
    """
    for attribute in (name, key, name.removeprefix("clip_")):
        if attribute and hasattr(cond_stage_model, attribute):
            return getattr(cond_stage_model, attribute)
    if name and isinstance(getattr(cond_stage_model, "clip", None), str) and cond_stage_model.clip.removeprefix("clip_") == name.removeprefix("clip_"):
        return getattr(cond_stage_model, cond_stage_model.clip)
    return cond_stage_model if hasattr(cond_stage_model, "transformer") else None
