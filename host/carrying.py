"""Tokenizers that carry learned tokens: copies of the host's, with a subclass that rewrites each token as the host's `embedding:name`.

Only the class differs. A copy has exactly the attributes of the original: other packs walk through `vars(tokenizer)`, replace a method on
the instance for a while, and then delete it. Deleting reveals the method of the class again, which is ours.
"""

from __future__ import annotations

import copy
import functools
import logging
import re
from collections.abc import Callable

import torch

from ..formats import token_rows
from ..formats.manifest import digests
from ..formats.token import LearnedToken
from ..formats.token_text import mentions, named_token, replace_tokens, token_pattern

log = logging.getLogger(__name__)

_MARK = "\ue000"  # Unicode private use: not a digit, and the host's prompt parser leaves it alone
_NO_MARK = "\ue002"  # replaces a _MARK that the prompt itself contains
named: set[str] = set()  # the tags of all tokens that prompts have named
_TAG = "kindred_tag"  # attribute of a vector in a token list: `token_rows.tag_of` the token that it belongs to


def tag_of(entry) -> str | None:
    """The tag of the token whose vector an id or a vector of a token list is; None for all others."""
    return getattr(entry, _TAG, None) if torch.is_tensor(entry) else None


def tokenizer_parts(tokenizer) -> list[tuple[str, object]]:
    """(attribute name, SDTokenizer) of each part of the host's tokenizer; the name is "" if the tokenizer is a single SDTokenizer."""
    if _is_part(tokenizer):
        return [("", tokenizer)]
    return [(name, value) for name, value in vars(tokenizer).items() if _is_part(value)]


def carried_by(tokenizer) -> dict[str, LearnedToken]:
    """Token text -> token, for all learned tokens that `tokenizer` carries."""
    return dict(getattr(type(tokenizer), "kindred_tokens", {}))


def carrying_tokenizer(tokenizer, carried: dict[str, LearnedToken]):
    """A copy of the host's `tokenizer` that carries exactly the tokens `carried`. The original does not change.

    Raises ValueError if another node has replaced a method of the tokenizer in a way that would hide the tokens.
    """
    outer = copy.copy(tokenizer)
    tokenize = _below(outer, tokenizer, "tokenize_with_weights", carried)
    if _is_part(tokenizer):
        return _carrying_part(outer, tokenizer, carried, lambda method: _warn_if_lost(method, carried), tokenize)
    outer.__class__ = _subclass(tokenizer, carried, {"tokenize_with_weights": _warn_if_lost(tokenize, carried)}, {"tokenize_with_weights": tokenize})
    for name, part in tokenizer_parts(tokenizer):
        clone = copy.copy(part)
        setattr(outer, name, _carrying_part(clone, part, carried, lambda method: method, _below(clone, part, "tokenize_with_weights", carried)))
    return outer


def _is_part(value) -> bool:
    return hasattr(value, "embedding_key") and hasattr(value, "tokenize_with_weights")


def _carrying_part(clone, part, carried: dict[str, LearnedToken], checked: Callable, tokenize: Callable):
    """Turn `clone`, a copy of one encoder's tokenizer `part`, into one that reads carried tokens as the host reads `embedding:name`. Returns it.

    Each mention of a token becomes the host's own embedding syntax around a private mark, so the host still does the emphasis, word ids
    and chunks. Text without mentions is not changed. `checked` wraps the new `tokenize_with_weights`.
    """
    own = {text: token.vectors[part.embedding_key] for text, token in carried.items() if part.embedding_key in token.vectors}
    foreign = {text: token.class_word for text, token in carried.items() if text not in own}
    order, pattern = list(own), token_pattern(own)
    tags = {text: tag for text in own if (tag := token_rows.tag_of(carried[text].metadata, part.embedding_key))}
    read: list[torch.Tensor] = []  # vectors of embedding files that the current call has looked up
    look_up = _below(clone, part, "_try_get_embedding", carried)
    if clone.embedding_directory is None:  # here the host reads `embedding:` as plain text, so only our marks may count as embeddings
        clone.embedding_directory = []
        clone.embedding_identifier = _MARK + _MARK
    short = len(type(part)._try_get_embedding(_without_folders(part), "x")) == 2  # older hosts return two values, without the name

    @functools.wraps(look_up)
    def try_get_embedding(self, name: str):
        index, mark, rest = name.removeprefix(_MARK).partition(_MARK)
        if not (name.startswith(_MARK) and mark and index.isdecimal() and int(index) < len(order)):
            found = look_up(self, name)
            if tags and torch.is_tensor(found[0]):
                read.append(found[0])
            return found
        vectors = own[order[int(index)]]
        return (vectors, rest.strip()) if short else (vectors, name, rest.strip())

    def embedding_syntax(match, identifier: str, emphasis: bool) -> str:
        token = named_token(match)
        if token is None:
            return match.group()
        before = match.string[: match.start()]  # the host reads an embedding only at the start of a segment or after white space
        begins = not before or before[-1] in " \n" or (before[-1] == "(" and emphasis and not before.endswith("\\("))
        return f"{'' if begins else ' '}{identifier}{_MARK}{order.index(token)}{_MARK}"

    @functools.wraps(tokenize)
    def tokenize_with_weights(self, text, *args, **kwargs):
        if isinstance(text, str):
            text = replace_tokens(text.replace(_MARK, _NO_MARK), foreign)
            if pattern is not None:
                emphasis = not kwargs.get("disable_weights", self.disable_weights) and _is_balanced(text)
                text = pattern.sub(lambda match: embedding_syntax(match, self.embedding_identifier, emphasis), text)
        if not tags:
            return tokenize(self, text, *args, **kwargs)
        read.clear()
        tokens = tokenize(self, text, *args, **kwargs)
        _tag(tokens, [*((own[text], tag) for text, tag in tags.items()), *_of_files(read, set(tags.values()))])
        return tokens

    below = {"tokenize_with_weights": tokenize, "_try_get_embedding": look_up}
    clone.__class__ = _subclass(part, carried, {"tokenize_with_weights": checked(tokenize_with_weights), "_try_get_embedding": try_get_embedding}, below)
    return clone


def _of_files(read: list[torch.Tensor], tags: set[str]) -> list[tuple[torch.Tensor, str]]:
    """The looked-up vectors that are a carried token's as it was trained, with its tag: `embedding:NAME` is the token's own file."""
    known = [(vectors, digests({"": vectors if vectors.ndim == 2 else vectors[None]})[0]) for vectors in read]
    return [(vectors, tag) for vectors, tag in known if tag in tags]


def _tag(tokens, tagged: list[tuple[torch.Tensor, str]]) -> None:
    """Mark each vector of a token list that is a row of one of `tagged`. The host cut the rows, so they share its memory."""
    if isinstance(tokens, (list, tuple)):
        for part in tokens:
            if torch.is_tensor(part):
                tag = next((tag for vectors, tag in tagged if vectors.data_ptr() <= part.data_ptr() < vectors.data_ptr() + vectors.nbytes), None)
                if tag is not None:
                    setattr(part, _TAG, tag)
                    named.add(tag)
            else:
                _tag(part, tagged)


def _is_balanced(text: str) -> bool:
    """Are all parentheses of emphasis paired? Only then does the host start a new segment after each of them."""
    depth = 0
    for bracket in re.findall(r"\\[()]|[()]", text):
        depth += {"(": 1, ")": -1}.get(bracket, 0)
        if depth < 0:
            return False
    return depth == 0


def _warn_if_lost(tokenize: Callable, carried: dict[str, LearnedToken]) -> Callable:
    """`tokenize` with a warning if the prompt names a token and the result has no vectors, because another node parses prompts itself."""

    @functools.wraps(tokenize)
    def tokenize_with_weights(self, text, *args, **kwargs):
        tokens = tokenize(self, text, *args, **kwargs)
        lost = [token for each in ([text] if isinstance(text, str) else text) if isinstance(each, str) for token in mentions(each, carried)]
        if lost and not _has_vectors(tokens):
            log.warning(
                "The prompt names %s, but another node parses the prompt itself and reads that as plain text. "
                "Encode prompts with tokens by CLIP Text Encode or Text Encode Concept.",
                ", ".join(map(repr, dict.fromkeys(lost))),
            )
        return tokens

    return tokenize_with_weights


def _has_vectors(tokens) -> bool:
    if isinstance(tokens, dict):
        return any(map(_has_vectors, tokens.values()))
    if isinstance(tokens, (list, tuple)):
        return any(map(_has_vectors, tokens))
    return torch.is_tensor(tokens) and tokens.ndim == 1


def _base(tokenizer) -> type:
    """The class below ours. A subclass of ours that another pack made is a base of its own."""
    return vars(type(tokenizer)).get("kindred_base", type(tokenizer))


def _subclass(tokenizer, carried: dict[str, LearnedToken], methods: dict[str, Callable], below: dict[str, Callable]) -> type:
    """A subclass of the class of `tokenizer` under the same name, since some packs distinguish tokenizers by the name of the class."""
    base = _base(tokenizer)
    names = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (base,), {**names, **methods, "kindred_base": base, "kindred_below": below, "kindred_tokens": carried})


def _below(clone, original, name: str, carried: dict[str, LearnedToken]) -> Callable:
    """The function that the method `name` of a carrying copy calls: the method of the class below, or the one that another node set on the instance.

    The latter is removed from `clone`, where it would hide ours. A method that is bound to `original` is called with the copy instead.
    Any other callable would keep calling the original tokenizer, which does not know the tokens: ValueError.
    """
    base, replaced = _base(original), vars(clone).pop(name, None)
    function = getattr(replaced, "__func__", None)
    if replaced is None or function is getattr(type(original), name):
        if name in vars(type(original)).get("kindred_below", {}):
            return type(original).kindred_below[name]

        @functools.wraps(getattr(base, name))
        def of_class(self, *args, **kwargs):
            return getattr(base, name)(self, *args, **kwargs)  # looked up at each call, because another pack may replace it

        return of_class
    if function is None or replaced.__self__ is not original:
        raise ValueError(
            f"Another node has changed how this text encoder reads prompts, so it would not see {', '.join(map(repr, carried))}. "
            f"Put that node after the node that adds the token. (It replaced {name} of {type(original).__name__}.)"
        )
    return function


def _without_folders(part):
    clone = copy.copy(part)
    clone.embedding_directory = []
    return clone
