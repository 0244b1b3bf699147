"""File names from the graph: what an artist types, made safe on every system, and never leading out of the folder it belongs to."""

from __future__ import annotations

import re
import unicodedata

_RESERVED = {"con", "prn", "aux", "nul", *(f"{device}{digit}" for device in ("com", "lpt") for digit in "123456789¹²³")}


def safe_name(name: str, what: str = "name") -> str:
    """`name` as a file's stem on Windows, macOS and Linux, or ValueError that says what is wrong with it.

    Unicode letters stay. Folders, `..`, drive letters and control characters are refused rather than repaired: whoever types
    them wants a place that this is not.
    """
    text = unicodedata.normalize("NFC", name).strip()
    if not text:
        raise ValueError(f"The {what} is empty. Give it a name, for example 'my_dog'.")
    bad = re.search(r'[\x00-\x1f\x7f<>:"/\\|?*]', text)
    if bad:
        raise ValueError(f"The {what} {name!r} contains {bad.group()!r}, which a file name cannot carry. Use letters, digits, spaces, '-', '_' and '.'.")
    if text.startswith(".") or text.endswith((".", " ")):
        raise ValueError(f"The {what} {name!r} begins or ends with a dot, which hides a file or is lost on Windows. Leave it out.")
    if text.split(".")[0].rstrip().lower() in _RESERVED:
        raise ValueError(f"The {what} {name!r} is reserved on Windows. Choose another one, for example {text + '_1'!r}.")
    if len(text.encode("utf-8")) > 120:
        raise ValueError(f"The {what} {text[:20]!r}... is {len(text.encode('utf-8'))} bytes long; at most 120 fit every file system with room for an ending.")
    return text


def file_part(token: str) -> str:
    """What a token contributes to a file's name: `<v1>` -> `v1`."""
    return re.sub(r"[^\w.-]+", "", token).strip(".") or "token"
