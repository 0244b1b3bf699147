"""Prompts as token lists and as the host's CONDITIONING, and the tokens at each row."""

from __future__ import annotations

from . import encoders, page
from .encoders import by_encoder

# The host's structures: a CONDITIONING is a list of [tensor [B, rows, width], dict]. Token lists hold one list of (id or vector, weight, ...)
# per chunk, under the host's name of the encoder.
Conditioning = list[list]
TokenLists = dict[str, list[list[tuple]]]


def encode(clip, tokens: TokenLists) -> Conditioning:
    """The CONDITIONING that core's CLIPTextEncode makes of `tokens`, with hooks and their schedules."""
    return clip.encode_from_tokens_scheduled(tokens)


def pad_like(clip, tokens: TokenLists, model: TokenLists) -> TokenLists:
    """`tokens` padded to the length of `model` by each encoder's own rule: empty chunks for CLIP, padding tokens for T5. Never shortened."""
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


def special_ids(clip, key: str) -> tuple[int | None, int | None, int | None]:
    """The ids of the encoder's start, end and padding tokens; None for a token that it does not have."""
    part = encoders.encoder_tokenizers(clip)[key]
    return part.start_token, part.end_token, part.pad_token


def show_on_node(node_id: str | None, line: str) -> None:
    """Show `line` on the node, on the page that queued the prompt."""
    client = page.client()
    if node_id is not None and client is not None:
        page.server().send_progress_text(line, node_id, client)


def merge(prompts: list[TokenLists]) -> TokenLists | None:
    """Several prompts as the chunks of one, to encode them in one batch; None unless each prompt is one chunk and all have the same length."""
    merged: TokenLists = {}
    for tokens in prompts:
        if not isinstance(tokens, dict) or any(len(chunks) != 1 for chunks in tokens.values()):
            return None
        for name, chunks in tokens.items():
            merged.setdefault(name, []).extend(chunks)
    return merged if all(len({len(chunk) for chunk in chunks}) == 1 for chunks in merged.values()) else None
