"""From a prompt to the host's conditioning, and what stands at each of its rows."""

from __future__ import annotations

from . import page
from . import text as encoders
from .types import Clip, Conditioning, TokenLists


def encode(clip: Clip, tokens: TokenLists) -> Conditioning:
    """As core's CLIPTextEncode encodes, hooks and their schedules included."""
    return clip.encode_from_tokens_scheduled(tokens)


def by_encoder(clip: Clip, tokens: TokenLists) -> dict[str, list[list[tuple]]]:
    """The chunks of each encoder under its key (`clip_l`, ...) in place of the host's name (`l`)."""
    keys = encoders.encoder_tokenizers(clip)
    if isinstance(tokens, list):  # a tokenizer of its own, not one of several
        return {next(iter(keys)): tokens}
    found = {key: tokens[name] for key in keys for name in (key, key.removeprefix("clip_")) if name in tokens}
    return found or ({next(iter(keys)): next(iter(tokens.values()))} if len(keys) == len(tokens) == 1 else {})


def pad_like(clip: Clip, tokens: TokenLists, model: TokenLists) -> TokenLists:
    """`tokens` as long as `model` by each encoder's own rule: empty chunks for CLIP, padding tokens for T5. Never shorter than before."""
    parts, own, other = encoders.encoder_tokenizers(clip), by_encoder(clip, tokens), by_encoder(clip, model)
    padded = {}
    for name, chunks in tokens.items() if isinstance(tokens, dict) else [("", tokens)]:
        key = next((key for key, value in own.items() if value is chunks), None)
        if key is None or key not in other:
            padded[name] = chunks
            continue
        part, chunks = parts[key], [list(chunk) for chunk in chunks]
        for chunk, longer in zip(chunks, other[key], strict=False):
            missing = len(longer) - len(chunk)
            if missing > 0:
                padding = [(part.pad_token, 1.0)] * missing
                chunk[:] = padding + chunk if part.pad_left else chunk + padding
        empty = part.tokenize_with_weights("")
        chunks += [list(empty[0]) for _ in range(len(other[key]) - len(chunks))]
        padded[name] = chunks
    return padded if isinstance(tokens, dict) else padded[""]


def rows_of(chunks: list[list[tuple]]) -> list:
    """What stands at each row, chunk after chunk: ids and vectors without their weights."""
    return [entry[0] for chunk in chunks for entry in chunk]


def special_ids(clip: Clip, key: str) -> tuple[int | None, int | None, int | None]:
    """Start, end and padding of the encoder `key`; None for what it does not have."""
    part = encoders.encoder_tokenizers(clip)[key]
    return part.start_token, part.end_token, part.pad_token


def show(node_id: str | None, line: str) -> None:
    """Write `line` on the node, for whoever queued it."""
    client = page.client()
    if node_id is not None and client is not None:
        page.server().send_progress_text(line, node_id, client)


def merge(prompts: list[TokenLists]) -> TokenLists | None:
    """Several prompts as the chunks of one, to be encoded in one go; None where they are not one chunk each of one length."""
    merged: TokenLists = {}
    for tokens in prompts:
        if not isinstance(tokens, dict) or any(len(chunks) != 1 for chunks in tokens.values()):
            return None
        for name, chunks in tokens.items():
            merged.setdefault(name, []).extend(chunks)
    return merged if all(len({len(chunk) for chunk in chunks}) == 1 for chunks in merged.values()) else None
