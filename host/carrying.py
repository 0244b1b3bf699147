"""Tokenizers that read learned tokens: copies of the host's, of a subclass that marks each token the way the host reads `embedding:name`.

Only the class differs. A copy has the attributes of the original and no others: other packs walk through `vars(tokenizer)`, replace a
method on the instance for a while, and then delete what they find there. What shows again is the method of the class, which is ours.
"""

from __future__ import annotations

import copy
import functools
import logging
import re
from collections.abc import Callable

import torch

from ..formats.token import LearnedToken
from ..formats.token_text import mentions, named_token, replace_tokens, token_pattern

log = logging.getLogger(__name__)

_MARK = "\ue000"  # private use: not a number, and the host's prompt parser leaves it alone
_NO_MARK = "\ue002"  # in place of one that the prompt brings along


def tokenizer_parts(tokenizer) -> list[tuple[str, object]]:
    """(attribute name, SDTokenizer) of the host's tokenizer; the name is "" where the tokenizer is a single one itself."""
    if _is_part(tokenizer):
        return [("", tokenizer)]
    return [(name, value) for name, value in vars(tokenizer).items() if _is_part(value)]


def carried_by(tokenizer) -> dict[str, LearnedToken]:
    """Token text -> token, for all that `tokenizer` reads."""
    return dict(getattr(type(tokenizer), "kindred_tokens", {}))


def carrying(tokenizer, carried: dict[str, LearnedToken]):
    """A copy of the host's `tokenizer` that reads `carried` and no other token; the original stays as it is.

    Raises ValueError where another node has replaced a method of the tokenizer in a way that would hide the tokens.
    """
    outer = copy.copy(tokenizer)
    tokenize = _below(outer, tokenizer, "tokenize_with_weights", carried)
    if _is_part(tokenizer):
        return _carrying_part(outer, tokenizer, carried, lambda method: _checked(method, carried), tokenize)
    outer.__class__ = _subclass(tokenizer, carried, {"tokenize_with_weights": _checked(tokenize, carried)}, {"tokenize_with_weights": tokenize})
    for name, part in tokenizer_parts(tokenizer):
        clone = copy.copy(part)
        setattr(outer, name, _carrying_part(clone, part, carried, lambda method: method, _below(clone, part, "tokenize_with_weights", carried)))
    return outer


def _is_part(value) -> bool:
    return hasattr(value, "embedding_key") and hasattr(value, "tokenize_with_weights")


def _carrying_part(clone, part, carried: dict[str, LearnedToken], checked: Callable, tokenize: Callable):
    """`clone`, a copy of the host's tokenizer `part` of one encoder, as one that reads carried tokens as the host reads `embedding:name`.

    Each mention becomes the host's own embedding syntax around a private mark, so that emphasis, word ids, chunks and
    all else are the host's work; a text without mentions goes through untouched.
    """
    own = {text: token.vectors[part.embedding_key] for text, token in carried.items() if part.embedding_key in token.vectors}
    foreign = {text: token.class_word for text, token in carried.items() if text not in own}
    order, pattern = list(own), token_pattern(own)
    look_up = _below(clone, part, "_try_get_embedding", carried)
    if clone.embedding_directory is None:  # then the host takes `embedding:` for plain text: only our marks may be read
        clone.embedding_directory = []
        clone.embedding_identifier = _MARK + _MARK
    short = len(type(part)._try_get_embedding(_without_folders(part), "x")) == 2  # older hosts do not return the name

    @functools.wraps(look_up)
    def try_get_embedding(self, name: str):
        index, mark, rest = name.removeprefix(_MARK).partition(_MARK)
        if not (name.startswith(_MARK) and mark and index.isdecimal() and int(index) < len(order)):
            return look_up(self, name)
        vectors = own[order[int(index)]]
        return (vectors, rest.strip()) if short else (vectors, name, rest.strip())

    def marked(match, identifier: str, emphasis: bool) -> str:
        token = named_token(match)
        if token is None:
            return match.group()
        before = match.string[: match.start()]  # the host reads an embedding at the start of a segment or after white space
        begins = not before or before[-1] in " \n" or (before[-1] == "(" and emphasis and not before.endswith("\\("))
        return f"{'' if begins else ' '}{identifier}{_MARK}{order.index(token)}{_MARK}"

    @functools.wraps(tokenize)
    def tokenize_with_weights(self, text, *args, **kwargs):
        if isinstance(text, str):
            text = replace_tokens(text.replace(_MARK, _NO_MARK), foreign)
            if pattern is not None:
                emphasis = not kwargs.get("disable_weights", self.disable_weights) and _is_balanced(text)
                text = pattern.sub(lambda match: marked(match, self.embedding_identifier, emphasis), text)
        return tokenize(self, text, *args, **kwargs)

    below = {"tokenize_with_weights": tokenize, "_try_get_embedding": look_up}
    clone.__class__ = _subclass(part, carried, {"tokenize_with_weights": checked(tokenize_with_weights), "_try_get_embedding": try_get_embedding}, below)
    return clone


def _is_balanced(text: str) -> bool:
    """Does every bracket of emphasis have its partner? Only then does the host begin a segment after each of them."""
    depth = 0
    for bracket in re.findall(r"\\[()]|[()]", text):
        depth += {"(": 1, ")": -1}.get(bracket, 0)
        if depth < 0:
            return False
    return depth == 0


def _checked(tokenize: Callable, carried: dict[str, LearnedToken]) -> Callable:
    """`tokenize`, with a warning where a token that the prompt names did not arrive: another node reads prompts in its own way."""

    @functools.wraps(tokenize)
    def tokenize_with_weights(self, text, *args, **kwargs):
        read = tokenize(self, text, *args, **kwargs)
        lost = [token for each in ([text] if isinstance(text, str) else text) if isinstance(each, str) for token in mentions(each, carried)]
        if lost and not _has_vectors(read):
            log.warning(
                "The prompt names %s, but another node reads it in its own way and takes that for plain letters. "
                "Encode prompts with tokens by CLIP Text Encode or Text Encode Concept.",
                ", ".join(map(repr, dict.fromkeys(lost))),
            )
        return read

    return tokenize_with_weights


def _has_vectors(tokens) -> bool:
    if isinstance(tokens, dict):
        return any(map(_has_vectors, tokens.values()))
    if isinstance(tokens, (list, tuple)):
        return any(map(_has_vectors, tokens))
    return torch.is_tensor(tokens) and tokens.ndim == 1


def _base(tokenizer) -> type:
    """The class under ours; a subclass that somebody made of ours counts as one to build on."""
    return vars(type(tokenizer)).get("kindred_base", type(tokenizer))


def _subclass(tokenizer, carried: dict[str, LearnedToken], methods: dict[str, Callable], below: dict[str, Callable]) -> type:
    """A class that passes for the one of `tokenizer`: some packs tell tokenizers apart by the name of the class."""
    base = _base(tokenizer)
    same = {name: getattr(base, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(base.__name__, (base,), {**same, **methods, "kindred_base": base, "kindred_below": below, "kindred_tokens": carried})


def _below(clone, original, name: str, carried: dict[str, LearnedToken]) -> Callable:
    """What the method `name` of a carrying copy calls: the one of the class below, or the one that another node left on the instance.

    The latter is taken off `clone`, since it would hide ours. A method that is bound to `original` is called with the copy instead;
    anything else keeps calling what it was made for, which does not know the tokens.
    """
    base, found = _base(original), vars(clone).pop(name, None)
    function = getattr(found, "__func__", None)
    if found is None or function is getattr(type(original), name):
        if name in vars(type(original)).get("kindred_below", {}):
            return type(original).kindred_below[name]

        @functools.wraps(getattr(base, name))
        def of_class(self, *args, **kwargs):
            return getattr(base, name)(self, *args, **kwargs)  # looked up at each call: somebody may replace it

        return of_class
    if function is None or found.__self__ is not original:
        raise ValueError(
            f"Another node has changed how this text encoder reads prompts, so it would not see {', '.join(map(repr, carried))}. "
            f"Put that node after the one that adds the token. (It replaced {name} of {type(original).__name__}.)"
        )
    return function


def _without_folders(part):
    clone = copy.copy(part)
    clone.embedding_directory = []
    return clone
