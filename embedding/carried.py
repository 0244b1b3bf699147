"""Token SLERP: a CLIP whose tokens stand nearer to their class."""

from __future__ import annotations

import re

from ..formats import token_file
from ..formats.token import FILE_PREFIX, LearnedToken
from ..host import text as encoders
from ..host.types import Clip
from .slerp import check_share
from .tokens import adjust_token


def adjust_clip(clip: Clip, names: str, class_words: str, alpha: float, beta: float, norm: str) -> tuple[Clip, list[LearnedToken]]:
    """(a clone of `clip` whose tokens `names` are adjusted, those tokens); the incoming CLIP stays as it is.

    names         tokens as prompts write them, separated by commas or spaces; `embedding:name` for a file; "" for all that are carried
    class_words   one for all, or one for each, separated by commas; "" for each token's own
    """
    check_share("alpha", alpha)
    check_share("beta", beta)
    wanted = split_names(names) or list(encoders.carried_tokens(clip))
    if not wanted:
        raise ValueError("This CLIP carries no token. Connect the clip of Train Concept or Load Concept, or name a file: embedding:name.")
    adjusted = []
    for name, word in zip(wanted, one_for_each(wanted, class_words), strict=True):
        token = find_token(clip, name)
        word = word or token.class_word
        if not word:
            raise ValueError(f"The token {name!r} does not say what kind it is. Write its class word, for example 'dog'.")
        pieces = {key: encoders.embed_word(clip, key, word) for key in token.vectors if key in encoders.encoder_tokenizers(clip)}
        adjusted.append(adjust_token(token, word, pieces, alpha, beta, norm))
    return encoders.carry_tokens(clip, adjusted), adjusted


def split_names(names: str) -> list[str]:
    """Tokens that are separated by commas or spaces (which no token contains)."""
    return [name for name in re.split(r"[\s,]+", names) if name]


def one_for_each(names: list[str], class_words: str) -> list[str]:
    """The class word of each name, from one for all or one for each, separated by commas; "" where nothing is said."""
    words = [word.strip() for word in class_words.split(",")]
    if len(words) not in (1, len(names)):
        raise ValueError(f"{len(names)} tokens ({', '.join(names)}) and {len(words)} class words ({', '.join(words)}): give one for all, or one for each.")
    return words * len(names) if len(words) == 1 else words


def find_token(clip: Clip, name: str) -> LearnedToken:
    """The token that `clip` carries under `name`, or the embedding file that `embedding:name` means; ValueError with what there is."""
    carried = encoders.carried_tokens(clip)
    if name in carried:
        return carried[name]
    if name.startswith(FILE_PREFIX):
        path = token_file.find(name, encoders.embedding_folders(clip))
        plain = re.sub(r"\.(safetensors|pt|bin)$", "", name)
        return carried[plain] if plain in carried else token_file.load(path, encoders.embedding_widths(clip), text=plain)
    raise ValueError(f"This CLIP carries no token {name!r} (it carries {', '.join(map(repr, carried)) or 'none'}). A file is named as embedding:name.")
