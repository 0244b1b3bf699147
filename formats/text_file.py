"""Text files and JSON from untrusted sources, with limits on size and nesting."""

from __future__ import annotations

import json
from pathlib import Path

MAX_JSON = 16 * 2**20  # characters; the metadata of a LoRA trained on many captions has one or two million


def read(path: Path, limit: int, what: str) -> str:
    """The UTF-8 text in the file. `what` describes it in messages ("PEFT's configuration").

    ValueError, beginning with the file's name, if it is not UTF-8 text or has more than `limit` bytes. OSError from the disk.
    """
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
    """The value that JSON `text` describes. ValueError if it is invalid, too long or nested too deeply."""
    if len(text) > MAX_JSON:
        raise ValueError(f"the JSON has {len(text) / 1e6:.0f} million characters")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def model_type(folder: Path) -> str:
    """`model_type` in the config.json of a folder; "" for a folder that is not in transformers' layout."""
    try:
        config = parse_json(read(folder / "config.json", 2**20, "a model's configuration"))
    except (OSError, ValueError):
        return ""
    return str(config.get("model_type", "")) if isinstance(config, dict) else ""
