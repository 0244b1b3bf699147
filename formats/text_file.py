"""Text from files of any origin: so much of it, in UTF-8, and JSON that may be damaged or hostile."""

from __future__ import annotations

import json
from pathlib import Path

MOST_JSON = 16 * 2**20  # characters; the metadata of a LoRA trained on many captions has one or two million


def read(path: Path, limit: int, what: str) -> str:
    """The text in the file. ValueError begins with its name: not UTF-8, not text, or more than `limit` bytes. OSError from the disk."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path.name!r} has more than {limit // 1024} KB, too much for {what}.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{path.name!r} is not written in UTF-8. Save {what} as UTF-8 text.") from None
    if "\0" in text:
        raise ValueError(f"{path.name!r} is not text. Save {what} as UTF-8 text.")
    return text


def parse_json(text: str) -> object:
    """What the JSON says. ValueError for whatever is wrong with it, also for brackets that nest too deep."""
    if len(text) > MOST_JSON:
        raise ValueError(f"the JSON has {len(text) / 1e6:.0f} million characters")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON nests too deep") from None
