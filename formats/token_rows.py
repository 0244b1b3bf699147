"""Token rows: on which rows of a prompt's features a concept's K and V differences act. Read from and written to a file's metadata. Knows no torch.

A row is one position of the encoded prompt. A difference that acts on the token's rows alone leaves every prompt without the token as the base
model has it; one that acts on all rows (Custom Diffusion, ClassDiffusion) changes the class word, too. Related: TARA (arXiv 2508.08812).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ALL = "all"
KEY = "kindred.rows"  # in the metadata of both files: a key of ROWS, or ALL
TOKENS = "kindred.rows_tokens"  # LoRA: JSON list of the digests of its tokens' vectors
VECTORS = "kindred.rows_vectors"  # embedding: JSON, encoder key -> the digest of its vectors as trained


@dataclass(frozen=True)
class Reach:
    """The rows of a prompt that belong to a token, besides its own.

    class_word  the class word's, if it follows right behind the token: with causal attention it has read the token
    behind      those of all words behind the token
    end         that of the end token, where the chunk names no other token: two concepts on one row would mix
    """

    class_word: bool = False
    behind: bool = False
    end: bool = False


USUAL = "token and end"  # the best of dev/bench/rows.py
ROWS: dict[str, Reach] = {
    USUAL: Reach(class_word=True, end=True),
    "token": Reach(class_word=True),
    "token alone": Reach(),  # this one and the next are for experiments
    "token and all behind": Reach(behind=True),
}


def reach(name: str) -> Reach | None:
    """The row of the table; None for ALL. ValueError for an unknown name."""
    if name == ALL:
        return None
    if name not in ROWS:
        raise ValueError(
            f"The file says that it acts on the rows {name!r}; this version of Kindred knows {', '.join(map(repr, [ALL, *ROWS]))}. Update Kindred."
        )
    return ROWS[name]


def in_chunk(
    tags: Sequence[str | None], ids: Sequence[int | None], class_ids: Mapping[str, Sequence[int]], end: int | None, reaches: Mapping[str, Reach]
) -> dict[str, list[int]]:
    """Tag -> its positions in one chunk of an encoder's token list.

    tags       for each position the tag of the token whose vector stands there, or None
    ids        for each position the vocabulary id, or None for a vector
    class_ids  tag -> the ids of its class word
    end        id of the end token;  reaches: tag -> which rows belong to it
    """
    found: dict[str, list[int]] = {}
    last = next((at for at, token in enumerate(ids) if end is not None and token == end), len(ids))
    for at, tag in enumerate(tags):
        if tag is None:
            continue
        rows, reached = found.setdefault(tag, []), reaches[tag]
        rows.append(at)
        if at + 1 < len(tags) and tags[at + 1] == tag:
            continue  # the next of its vectors
        word = list(class_ids.get(tag, ()))
        if reached.behind:
            rows += [row for row in range(at + 1, last) if tags[row] is None]
        elif reached.class_word and word and list(ids[at + 1 : at + 1 + len(word)]) == word:
            rows += range(at + 1, at + 1 + len(word))
        if reached.end and last < len(ids) and not {*tags} - {None, tag}:
            rows.append(last)
    return {tag: sorted(set(rows)) for tag, rows in found.items()}


def tags_of(metadata: Mapping[str, str]) -> frozenset[str]:
    """The digests that a LoRA's metadata lists: the tokens on whose rows it acts. ValueError where the list is missing or damaged."""
    try:
        tags = json.loads(metadata[TOKENS])
        if not isinstance(tags, list) or not tags or not all(isinstance(tag, str) for tag in tags):
            raise ValueError(metadata[TOKENS])
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"The file acts on its tokens' rows, but its list of tokens is missing or damaged. Save the concept again. ({error!r})") from error
    return frozenset(tags)


def tag_of(metadata: Mapping[str, str], encoder: str) -> str | None:
    """The digest under which a token's rows are known, for one of its encoders; None for a token that limits nothing to its rows."""
    if metadata.get(KEY, ALL) == ALL:
        return None
    try:
        tag = json.loads(metadata.get(VECTORS, "{}")).get(encoder)
    except (ValueError, AttributeError, RecursionError):
        return None
    return tag if isinstance(tag, str) else None
