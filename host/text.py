"""The host's text encoders: CLIP objects that carry learned tokens, and the parts of an encoder that training and TEA need.

A token is carried by the tokenizer, not by the encoder's weights: the host's token lists may hold vectors in place of
ids, so a clone with its own tokenizer is all it takes, and the incoming CLIP (and everybody who shares it) stays as it is.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterable

import torch

from ..formats.token import LearnedToken

_MARK = "\ue000"  # private use: cannot stand in a prompt, is no number, survives the host's prompt parser
_IDENTIFIER = "embedding:"


def encoder_tokenizers(clip) -> dict[str, object]:
    """Encoder key (`clip_l`, `clip_g`, `t5xxl`, ...) -> the host's SDTokenizer of that encoder, in the host's order."""
    return {part.embedding_key: part for _, part in _parts(_base_tokenizer(clip))}


def encoder_model(clip, key: str) -> torch.nn.Module:
    """The host's SDClipModel of the encoder `key`."""
    return part_of_model(clip.cond_stage_model, clip, key)


def part_of_model(cond_stage_model: torch.nn.Module, clip, key: str) -> torch.nn.Module:
    """Like `encoder_model`, in another instance of the same text model (a training copy)."""
    for name, part in _parts(_base_tokenizer(clip)):
        if part.embedding_key == key:
            return getattr(cond_stage_model, name, cond_stage_model) if name else cond_stage_model
    raise ValueError(f"This CLIP has no encoder {key!r}; it has {', '.join(encoder_tokenizers(clip)) or 'none'}.")


def token_list_names(clip) -> dict[str, str]:
    """Encoder key (`clip_l`) -> the name of its list in what `clip.tokenize` returns (`l`)."""
    tokenizer = _base_tokenizer(clip)
    if hasattr(tokenizer, "clip_name"):  # the host's single-encoder wrapper says it itself
        return {part.embedding_key: tokenizer.clip_name for _, part in _parts(tokenizer)}
    return {part.embedding_key: name.removeprefix("clip_") for name, part in _parts(tokenizer)}


def word_ids(clip, key: str, text: str) -> list[int]:
    """The vocabulary ids of `text` in the encoder `key`, without start, end and padding."""
    part = encoder_tokenizers(clip)[key]
    end = -1 if part.tokenizer_adds_end_token else None
    return list(part.tokenizer(text)["input_ids"][part.tokens_start:end])


def input_embeddings(clip, key: str) -> torch.Tensor:
    """The vocabulary's embedding matrix of the encoder `key`: [vocabulary, width], as the host holds it (any device and dtype)."""
    return encoder_model(clip, key).transformer.get_input_embeddings().weight


def carry_tokens(clip, tokens: Iterable[LearnedToken]):
    """A clone of `clip` whose prompts may name `tokens`, besides those that it carries already (same text: the new one wins).

    An encoder for which a token has no vectors reads the class word instead, or nothing where the class word follows anyway.
    Raises ValueError when vectors do not fit the encoder's width.
    """
    carried = {**carried_tokens(clip), **{token.text: token for token in tokens}}
    parts = encoder_tokenizers(clip)
    for token in carried.values():
        for key in token.vectors.keys() & parts.keys():
            width, found = parts[key].embedding_size, token.vectors[key].shape[-1]
            if found != width:
                raise ValueError(f"Token {token.text!r} has vectors of width {found} for {key}, this CLIP expects {width}: it was learned on another model family.")
        if not token.vectors.keys() & parts.keys():
            raise ValueError(f"Token {token.text!r} was learned for {', '.join(token.vectors) or 'no encoder'}; this CLIP has {', '.join(parts)}.")
    clone = clip.clone()
    clone.tokenizer = _carrying(_base_tokenizer(clip), carried)
    return clone


def carried_tokens(clip) -> dict[str, LearnedToken]:
    """Token text -> token, for all that `clip` carries."""
    return dict(getattr(clip.tokenizer, "kindred_tokens", {}))


def mentions(text: str, tokens: Iterable[str]) -> list[str]:
    """The carried tokens that `text` names, in the order of their first appearance."""
    pattern = _pattern(tokens)
    return list(dict.fromkeys(match.group() for match in pattern.finditer(text))) if pattern else []


def replace_tokens(text: str, tokens: dict[str, LearnedToken]) -> str:
    """`text` as an encoder without the tokens should read it: the class word in their place, once.

    "a photo of a <v1> dog" -> "a photo of a dog";  "a photo of <v1>" -> "a photo of dog".
    """
    pattern = _pattern(tokens)
    if pattern is None:
        return text

    def plain(match: re.Match) -> str:
        word = tokens[match.group()].class_word
        follows = re.match(r"[\s)]*(?::[\d.]+\)\s*)?" + re.escape(word) + r"(?!\w)", match.string[match.end():], re.IGNORECASE)
        return "" if follows else word

    return re.sub(r"(?<=\S)  +(?=\S)", " ", pattern.sub(plain, text))


def _base_tokenizer(clip):
    return getattr(clip.tokenizer, "kindred_base", clip.tokenizer)


def _is_part(value) -> bool:
    return hasattr(value, "embedding_key") and hasattr(value, "tokenize_with_weights")


def _parts(tokenizer) -> list[tuple[str, object]]:
    """(attribute name, SDTokenizer) of the host's tokenizer; the name is "" where the tokenizer is a single one itself."""
    if _is_part(tokenizer):
        return [("", tokenizer)]
    return [(name, value) for name, value in vars(tokenizer).items() if _is_part(value)]


def _pattern(tokens: Iterable[str]) -> re.Pattern | None:
    words = sorted(tokens, key=len, reverse=True)
    if not words:
        return None
    bounded = ((r"(?<!\w)" if re.match(r"\w", word) else "") + re.escape(word) + (r"(?!\w)" if re.search(r"\w$", word) else "") for word in words)
    return re.compile("|".join(bounded))


def _carrying(base, carried: dict[str, LearnedToken]):
    outer = copy.copy(base)
    for name, part in _parts(base):
        wrapped = _carrying_part(part, carried)
        if name:
            setattr(outer, name, wrapped)
        else:
            outer = wrapped
    outer.kindred_base = base
    outer.kindred_tokens = carried
    return outer


def _carrying_part(part, carried: dict[str, LearnedToken]):
    clone = copy.copy(part)
    own = {text: token.vectors[part.embedding_key] for text, token in carried.items() if part.embedding_key in token.vectors}
    order = list(own)
    pattern = _pattern(own)
    foreign = {text: token for text, token in carried.items() if text not in own}
    if clone.embedding_directory is None:  # the host ignores vectors in prompts altogether without a directory
        clone.embedding_directory = []

    @functools.wraps(part._try_get_embedding)
    def try_get_embedding(name: str):
        if not name.startswith(_MARK):
            return type(part)._try_get_embedding(clone, name)
        index, _, rest = name[1:].partition(_MARK)
        return own[order[int(index)]], name, rest.strip()

    @functools.wraps(part.tokenize_with_weights)
    def tokenize_with_weights(text: str, *args, **kwargs):
        text = replace_tokens(text, foreign)
        if pattern is not None:
            text = pattern.sub(lambda match: f" {_IDENTIFIER}{_MARK}{order.index(match.group())}{_MARK} ", text)
        return type(part).tokenize_with_weights(clone, text, *args, **kwargs)

    clone._try_get_embedding = try_get_embedding
    clone.tokenize_with_weights = tokenize_with_weights
    return clone
