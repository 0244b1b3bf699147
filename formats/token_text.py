"""Mentions of learned tokens in a prompt, and the prompt without them. Text only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .classes import other_class
from .token import FILE_PREFIX

_HOLE = "\ue001"  # private use: marks a removed token
_ENDING = r"\.(?:safetensors|pt|bin)"
_EMPTY_GROUP = re.compile(rf"\(\s*{_HOLE}\s*(?::[\d.]*)?\s*\)")


def token_pattern(tokens: Iterable[str]) -> re.Pattern | None:
    """A pattern that matches each mention of `tokens`, the longest first; `named_token` tells which one. None without tokens.

    A token that begins or ends like a word ("sks") does not match inside a longer word or an embedding's name. Such names
    ("embedding:my-sks") match as a whole, and `named_token` returns None for them.
    `<v1>` may also be written `embedding:<v1>`, which core cannot read as a file.
    """
    words = sorted(tokens, key=len, reverse=True)
    if not words:
        return None
    choices = []
    for word in words:
        escaped = re.escape(word)
        if word.startswith(FILE_PREFIX):  # core reads a name up to white space, '<' or '['
            choices.append(rf"(?<!\w){escaped}(?:{_ENDING})?(?=[\s<\[(),:]|$)")
        elif word[0] in "<[":
            choices.append(rf"(?:(?<!\w){FILE_PREFIX}\s*)?{escaped}")
        else:
            choices.append((r"(?<!\w)" if _wordlike(word[0]) else "") + escaped + (r"(?!\w)" if _wordlike(word[-1]) else ""))
    return re.compile(rf"(?P<token>{'|'.join(choices)})|(?<!\w){FILE_PREFIX}\s*[^\s<\[()]+")


def named_token(match: re.Match) -> str | None:
    """The token that a match of `token_pattern` names; None if it is another embedding's name."""
    text = match["token"]
    if text is None or not text.startswith(FILE_PREFIX):
        return text
    inner = text.removeprefix(FILE_PREFIX).lstrip()
    return inner if inner[0] in "<[" else FILE_PREFIX + re.sub(rf"{_ENDING}$", "", inner)


def mentions(text: str, tokens: Iterable[str]) -> list[str]:
    """Those of `tokens` that `text` mentions, in the order of their first mention."""
    pattern = token_pattern(tokens)
    mentioned = (named_token(match) for match in pattern.finditer(text)) if pattern else ()
    return list(dict.fromkeys(token for token in mentioned if token is not None))


def wrong_classes(text: str, class_words: Mapping[str, str]) -> list[str]:
    """A warning for each mention in `text` that is followed by a word of another class than the token's: "<v1> dog" for a bear."""
    pattern, warnings = token_pattern(class_words), {}
    for match in pattern.finditer(text) if pattern else ():
        token = named_token(match)
        if token and (word := other_class(text, match.end(), class_words[token])):
            warnings[token, word] = (
                f"The prompt says '{token} {word}', but the class word of {token} is '{class_words[token]}'. Write '{token} {class_words[token]}'."
            )
    return list(warnings.values())


def replace_tokens(text: str, class_words: Mapping[str, str]) -> str:
    """`text` for an encoder without the tokens: each token is replaced by its class word, unless that follows already; by nothing if it is "".

    "a photo of a <v1> dog" -> "a photo of a dog";  "a photo of <v1>" -> "a photo of dog";  "a (<v1>:1.3) dog" -> "a dog".
    A text without tokens is returned unchanged.
    """
    pattern = token_pattern(class_words)
    if pattern is None:
        return text

    def plain(match: re.Match) -> str:
        token = named_token(match)
        if token is None:
            return match.group()
        word = class_words[token].strip()
        if not word:
            return _HOLE
        escaped = r"\s+".join(map(re.escape, word.split()))
        follows = re.match(rf"[\s)]*(?::[\d.]+\))?[\s)]*\(*{escaped}(?!\w)", match.string[match.end() :], re.IGNORECASE)
        return _HOLE if follows else word

    text = pattern.sub(plain, text)
    while _EMPTY_GROUP.search(text):  # "(:1.3)" would be read as text
        text = _EMPTY_GROUP.sub(_HOLE, text)
    return re.sub(rf"(?P<before>^|[ \t(]*){_HOLE}[ \t]*", lambda hole: hole["before"], text)


def _wordlike(character: str) -> bool:
    return character.isalnum() or character == "_"
