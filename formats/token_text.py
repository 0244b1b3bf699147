"""Where a prompt names learned tokens, and how it reads without them. Text only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from .kinds import other_kind
from .token import FILE_PREFIX

_HOLE = "\ue001"  # private use: where a token stood
_ENDING = r"\.(?:safetensors|pt|bin)"
_EMPTY_GROUP = re.compile(rf"\(\s*{_HOLE}\s*(?::[\d.]*)?\s*\)")


def token_pattern(tokens: Iterable[str]) -> re.Pattern | None:
    """Matches each mention of `tokens`, the longest first; ask `named` which one it is.

    A token that begins or ends like a word ("sks") is no part of a longer word, nor of an embedding's name
    ("embedding:my-sks": such names match too, so that nothing inside them does, and `named` gives None).
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


def named(match: re.Match) -> str | None:
    """The token that a match of `token_pattern` names; None where it is another embedding's name."""
    text = match["token"]
    if text is None or not text.startswith(FILE_PREFIX):
        return text
    inner = text.removeprefix(FILE_PREFIX).lstrip()
    return inner if inner[0] in "<[" else FILE_PREFIX + re.sub(rf"{_ENDING}$", "", inner)


def mentions(text: str, tokens: Iterable[str]) -> list[str]:
    """The carried tokens that `text` names, in the order of their first appearance."""
    pattern = token_pattern(tokens)
    found = (named(match) for match in pattern.finditer(text)) if pattern else ()
    return list(dict.fromkeys(token for token in found if token is not None))


def wrong_kinds(text: str, class_words: Mapping[str, str]) -> list[str]:
    """A sentence for each mention in `text` that is followed by another kind of thing than the token's class word: "<v1> dog" of a bear."""
    pattern, said = token_pattern(class_words), {}
    for match in pattern.finditer(text) if pattern else ():
        token = named(match)
        if token and (word := other_kind(text, match.end(), class_words[token])):
            said[token, word] = (
                f"The prompt says '{token} {word}', but the class word of {token} is '{class_words[token]}'. Write '{token} {class_words[token]}'."
            )
    return list(said.values())


def replace_tokens(text: str, class_words: Mapping[str, str]) -> str:
    """`text` as an encoder without the tokens should read it: the class word (by token) in their place, once; nothing where that is "".

    "a photo of a <v1> dog" -> "a photo of a dog";  "a photo of <v1>" -> "a photo of dog";  "a (<v1>:1.3) dog" -> "a dog".
    A text that names none of them comes back as it is.
    """
    pattern = token_pattern(class_words)
    if pattern is None:
        return text

    def plain(match: re.Match) -> str:
        token = named(match)
        if token is None:
            return match.group()
        word = class_words[token].strip()
        if not word:
            return _HOLE
        kind = r"\s+".join(map(re.escape, word.split()))
        follows = re.match(rf"[\s)]*(?::[\d.]+\))?[\s)]*\(*{kind}(?!\w)", match.string[match.end() :], re.IGNORECASE)
        return _HOLE if follows else word

    text = pattern.sub(plain, text)
    while _EMPTY_GROUP.search(text):  # "(:1.3)" would be read as text
        text = _EMPTY_GROUP.sub(_HOLE, text)
    return re.sub(rf"(?P<before>^|[ \t(]*){_HOLE}[ \t]*", lambda hole: hole["before"], text)


def _wordlike(character: str) -> bool:
    return character.isalnum() or character == "_"
