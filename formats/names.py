"""File names from the graph: checked to be valid on every system and to stay within their folder."""

from __future__ import annotations

import re
import unicodedata

_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{digit}" for port in ("COM", "LPT") for digit in "123456789¹²³")}


def safe_name(name: str, what: str = "name") -> str:
    """`name` as a file's stem that is valid on Windows, macOS and Linux. ValueError with the reason if it is not. `what` describes it in messages.

    Unicode letters stay. Folders, `..`, drive letters and control characters are refused rather than repaired, because their author wants
    another folder. The limit of 200 bytes leaves room for a number and an ending.
    """
    text = unicodedata.normalize("NFC", name).strip()
    if text.startswith("."):
        raise ValueError(f"The {what} {name!r} begins with a dot, which hides the file. Leave it out.")
    if len(text.encode("utf-8", "surrogatepass")) > 200:
        raise ValueError(
            f"The {what} {text[:20]!r}... is {len(text.encode('utf-8', 'surrogatepass'))} bytes long. "
            "Use at most 200, which leave room for an ending on every file system."
        )
    return check_file_name(text, what)


def check_file_name(name: str, what: str = "file name") -> str:
    """Return `name` if it is a valid file name on every common system, else raise ValueError with the reason."""
    if not name.strip() or not name.split(".")[0].strip():
        raise ValueError(f"The {what} {name!r} is empty. Give it a name, for example 'my-dog'.")
    bad = re.search(r'[\x00-\x1f\x7f<>:"/\\|?*\ud800-\udfff]', name)  # the last are lone surrogates, which no file name can hold
    if bad:
        raise ValueError(f"The {what} {name!r} contains {bad.group()!r}, which some systems do not allow. Use letters, digits, '-' and '_'.")
    if name != name.strip() or name.endswith("."):
        raise ValueError(f"The {what} {name!r} begins or ends with a space, or ends with a dot, which Windows drops. Remove it.")
    if name.split(".")[0].rstrip().upper() in _RESERVED:
        raise ValueError(f"The {what} {name!r} is reserved by Windows. Choose another.")
    if len(name.encode()) > 255:
        raise ValueError(f"The {what} {name[:20]!r}... has {len(name.encode())} bytes. Use at most 255.")
    return name


def file_name(text: str) -> str:
    """A file name, without its ending, that is valid on every common system, for a token: `<v1>` -> `v1`."""
    stem = re.sub(r'[\x00-\x20<>:"/\\|?*\x7f\ud800-\udfff]+', "-", text).strip("-. ")
    while len(stem.encode()) > 200:
        stem = stem[:-1]
    return f"{stem}_" if stem.split(".")[0].upper() in _RESERVED else stem or "token"
