"""Which rows of a CONDITIONING belong to a token, from the token list to the sampler, through nodes that know nothing of it.

Two records travel. The CONDITIONING's dict names the rows, which survives whatever copies the dict. And each row's features are remembered with
the token that they belong to: features that are equal bit for bit are that row's, wherever they are found (Conditioning Concat, other packs).
"""

from __future__ import annotations

import functools
import hashlib
import logging
from collections import OrderedDict

import comfy.conds
import torch

from ..formats import token_rows
from . import carrying, encoders
from .types import Conditioning, TokenLists

log = logging.getLogger(__name__)

Rows = dict[str, list[int]]  # tag of a token -> its rows
KEY = "kindred_rows"  # in a CONDITIONING's dict, among the model's conditions, and in the options of a forward
_FLAT = {"clip_l", "clip_g", "clip_h"}  # encoders whose chunks stand one behind the other, and side by side with the others' chunks
_REMEMBERED = 100_000  # rows; about 15 MB
_LATEST = 64  # rows of each token whose features are kept, too

_known: OrderedDict[bytes, str] = OrderedDict()  # digest of a row's features -> tag
_features: dict[str, OrderedDict[bytes, torch.Tensor]] = {}  # tag -> digest -> features [width], float32 on the CPU
_noted: set[str] = set()  # tags of tokens that were seen in an encoded prompt


def carry(clip) -> None:
    """Make `clip`, whose tokenizer carries tokens, note the rows of its tokens in what it encodes. Its clones do it, too."""
    if not isinstance(clip, _NotesRows):
        clip.__class__ = _noting(type(clip))


class _NotesRows:
    """What a CLIP with tokens does besides: a subclass of the host's class, so that all copies that the host makes have it."""

    def clone(self, *args, **kwargs):
        clone = super().clone(*args, **kwargs)
        carry(clone)
        return clone

    def encode_from_tokens(self, tokens, *args, **kwargs):
        result = super().encode_from_tokens(tokens, *args, **kwargs)
        cond = result["cond"] if isinstance(result, dict) else result[0] if isinstance(result, tuple) else result
        found = self._rows(tokens, cond)
        if found:
            if isinstance(result, dict):
                result[KEY] = found
            remember(cond, found)
        return result

    def encode_from_tokens_scheduled(self, tokens, *args, **kwargs):
        result = super().encode_from_tokens_scheduled(tokens, *args, **kwargs)
        for cond, extras in result:
            if found := self._rows(tokens, cond):
                extras[KEY] = found
                remember(cond, found)
        return result

    def _rows(self, tokens, cond: torch.Tensor) -> Rows:
        """`rows_in`; none, with a warning, if another node makes something else of the token list than one row for each entry."""
        found = rows_in(self, tokens)
        if found and cond.shape[-2] != (count := max(sum(map(len, chunks)) for chunks in encoders.by_encoder(self, tokens).values())):
            log.warning(
                "Kindred: another node makes %d rows of a prompt of %d tokens, so it is not known which ones belong to %s, and the concept does not act there.",
                cond.shape[-2],
                count,
                ", ".join(sorted(repr(token.text) for token in carrying.carried_by(self.tokenizer).values())),
            )
            return {}
        return found


@functools.cache
def _noting(base: type) -> type:
    return type(base.__name__, (_NotesRows, base), {"__module__": base.__module__, "__qualname__": base.__qualname__})


def knows_rows(clip) -> bool:
    """Are the rows of a prompt's tokens known for this CLIP's family? Today: where all encoders are CLIPs (SD 1.x, 2.x, SDXL)."""
    return set(encoders.encoder_tokenizers(clip)) <= _FLAT


def rows_in(clip, tokens: TokenLists) -> Rows:
    """The rows of each tagged token in what `clip` encodes `tokens` to: none for a CLIP whose family's rows are not known."""
    by_tag = {}
    for token in carrying.carried_by(clip.tokenizer).values():
        for key in token.vectors:
            if (tag := token_rows.tag_of(token.metadata, key)) is not None:
                by_tag[tag] = token
    if not by_tag or not knows_rows(clip):
        return {}
    reaches = {tag: token_rows.reach(token.metadata[token_rows.KEY]) for tag, token in by_tag.items()}
    found: dict[str, set[int]] = {}
    for key, chunks in encoders.by_encoder(clip, tokens).items():
        tags = [[carrying.tag_of(entry[0]) for entry in chunk] for chunk in chunks]
        named = {tag for chunk in tags for tag in chunk if tag in by_tag}
        if not named:
            continue
        words = {tag: encoders.word_ids(clip, key, by_tag[tag].class_word) for tag in named if by_tag[tag].class_word}
        end, start = encoders.encoder_tokenizers(clip)[key].end_token, 0
        for chunk, of_chunk in zip(chunks, tags, strict=True):
            ids = [None if torch.is_tensor(entry[0]) else entry[0] for entry in chunk]
            for tag, rows in token_rows.in_chunk([tag if tag in named else None for tag in of_chunk], ids, words, end, reaches).items():
                found.setdefault(tag, set()).update(start + row for row in rows)
            start += len(chunk)
    return {tag: sorted(rows) for tag, rows in found.items()}


def mask(rows: Rows, count: int) -> torch.Tensor:
    """[1, count, 1] float32: 1 on all rows of `rows`."""
    values = torch.zeros(1, count, 1)
    values[0, sorted({row for some in rows.values() for row in some if row < count})] = 1
    return values


def mask_condition(values: torch.Tensor) -> comfy.conds.CONDCrossAttn:
    """A mask [1, rows, 1] as a condition that the host batches and pads exactly as it does the text features."""
    return comfy.conds.CONDCrossAttn(values)


def mark(features: torch.Tensor, mask: torch.Tensor) -> None:
    """Put the rows of `mask` [B, rows, 1] onto text features [B, rows, width], for the layers that read this very tensor."""
    setattr(features, KEY, mask.flatten().nonzero().flatten().to(features.device))


def marked(features: torch.Tensor) -> torch.Tensor:
    """The rows that `mark` has put onto text features, as indices into [B * rows]. RuntimeError if they are not such features."""
    found = getattr(features, KEY, None)
    if found is None:
        raise RuntimeError("A layer was given other text features than those whose token rows are known, so what acts on these rows cannot be trained there.")
    return found


def remember(cond: torch.Tensor, rows: Rows) -> None:
    """Note whose rows of the features `cond` [B, rows, width] are."""
    for tag, positions in rows.items():
        _noted.add(tag)
        own = cond[:, [row for row in positions if row < cond.shape[1]]].detach().to("cpu", torch.float32).flatten(0, -2)
        latest = _features.setdefault(tag, OrderedDict())
        for digest, row in zip(_digests(own), own, strict=True):
            _known[digest] = tag
            _known.move_to_end(digest)
            latest[digest] = row.clone()
            latest.move_to_end(digest)
        while len(latest) > _LATEST:
            latest.popitem(last=False)
    while len(_known) > _REMEMBERED:
        _known.popitem(last=False)


def latest(tags: frozenset[str]) -> list[tuple[str, torch.Tensor]]:
    """(tag, features [width]) of the rows of `tags` that were encoded last."""
    return [(tag, row) for tag in sorted(tags & _features.keys()) for row in _features[tag].values()]


def lost_tags() -> set[str]:
    """The tags of tokens that prompts have named, but that no encoded prompt has shown: another node encodes by itself."""
    return carrying.named - _noted


def find(cond: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """(tag, features [width]) of the rows of `cond` [B, rows, width] that belong to a token."""
    flat = cond.reshape(-1, cond.shape[-1])
    return [(tag, flat[at]) for at, digest in enumerate(_digests(cond)) if (tag := _known.get(digest)) is not None]


def note_again(conditioning: Conditioning) -> Conditioning:
    """`conditioning`, whose features were changed row by row: its rows are those that its dicts name."""
    for cond, extras, *_ in conditioning:
        if KEY in extras:
            remember(cond, extras[KEY])
    return conditioning


def _digests(cond: torch.Tensor) -> list[bytes]:
    values = cond.detach().to("cpu", torch.float32).reshape(-1, cond.shape[-1]).contiguous().numpy()
    return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in values]
