"""Token SLERP on a CLIP: its tokens are rotated toward their class words."""

from __future__ import annotations

import re

from ..formats import token_file
from ..formats.token import FILE_PREFIX, LearnedToken
from ..host import text as host_text
from .slerp import check_length, check_share
from .tokens import adjust_token


def adjust_clip(clip, names: str, class_words: str, alpha: float, beta: float, norm: str) -> tuple[object, list[LearnedToken]]:
    """(a clone of `clip` with the tokens `names` adjusted, those tokens). The incoming CLIP does not change.

    names         tokens as prompts write them, separated by commas or spaces; `embedding:name` for a file; "" for all that are carried
    class_words   one for all, or one for each, separated by commas; "" for each token's own
    """
    check_share("alpha", alpha)
    check_length(beta, norm)
    wanted = split_names(names) or list(host_text.carried_tokens(clip))
    if not wanted:
        raise ValueError("This CLIP carries no token. Connect the clip of Train Concept or Load Concept, or name a file: embedding:name.")
    adjusted = []
    for name, word in zip(wanted, one_for_each(wanted, class_words), strict=True):
        token = find_token(clip, name)
        word = word or token.class_word
        if not word:
            raise ValueError(f"The token {name!r} has no class word. Write one, for example 'dog'.")
        pieces = {key: host_text.embed_word(clip, key, word) for key in token.vectors if key in host_text.encoder_tokenizers(clip)}
        adjusted.append(adjust_token(token, word, pieces, alpha, beta, norm))
    return host_text.carry_tokens(clip, adjusted), adjusted


def split_names(names: str) -> list[str]:
    """Tokens that are separated by commas or spaces (which no token contains)."""
    return [name for name in re.split(r"[\s,]+", names) if name]


def one_for_each(names: list[str], class_words: str) -> list[str]:
    """The class word of each name, from one for all or one for each, separated by commas; "" = not given."""
    words = [word.strip() for word in class_words.split(",")]
    if len(words) not in (1, len(names)):
        raise ValueError(f"{len(names)} tokens ({', '.join(names)}) and {len(words)} class words ({', '.join(words)}): give one for all, or one for each.")
    return words * len(names) if len(words) == 1 else words


def find_token(clip, name: str) -> LearnedToken:
    """The token `name` of `clip`, or of the embedding file for `embedding:name`. Raises ValueError with the tokens that there are."""
    carried = host_text.carried_tokens(clip)
    if name in carried:
        return carried[name]
    if name.startswith(FILE_PREFIX):
        path = token_file.find_file(name, host_text.embedding_folders(clip))
        plain = re.sub(r"\.(safetensors|pt|bin)$", "", name)
        return carried[plain] if plain in carried else token_file.load(path, host_text.embedding_widths(clip), text=plain)
    raise ValueError(f"This CLIP carries no token {name!r} (it carries {', '.join(map(repr, carried)) or 'none'}). Name a file as embedding:name.")
