"""Folders below a root, for the lists of nodes: a folder that cannot be read is left out, and one that did not change is not read again."""

from __future__ import annotations

import os
import time
from pathlib import Path

# The clock of a file system may be as coarse as two seconds. A folder that changed just now may change again within the same tick.
_SETTLED = 3e9  # nanoseconds

_known: dict[str, dict[str, tuple[int, bool, list[str]]]] = {}  # root -> folder -> (time of its last change, does it hold files, its folders)


def folders(root: Path) -> list[str]:
    """The folders below `root` that hold files, as `/`-separated names, sorted.

    Links to folders are not followed, so a loop ends. Folders that may not be read, and names that are not text, are left out.
    Never raises OSError: the nodes of the whole pack depend on it.
    """
    top = os.fspath(root)
    known, now = _known.get(top, {}), {}
    found, waiting = [], [("", top)]
    while waiting:
        name, place = waiting.pop()
        entry = _entry(place, known.get(place))
        if entry is None:
            continue
        now[place] = entry
        _, holds_files, below = entry
        if holds_files and name:
            found.append(name)
        waiting += [(f"{name}/{child}" if name else child, os.path.join(place, child)) for child in below]  # noqa: PTH118 (called 100,000 times)
    _known[top] = {place: entry for place, entry in now.items() if time.time_ns() - entry[0] > _SETTLED}
    return sorted(found)


def _entry(place: str, known: tuple[int, bool, list[str]] | None) -> tuple[int, bool, list[str]] | None:
    """What `place` holds; None where it may not be read."""
    try:
        changed = os.stat(place, follow_symlinks=True).st_mtime_ns  # noqa: PTH116
        if known and known[0] == changed:
            return known
        with os.scandir(place) as entries:
            return changed, *_content(entries)
    except OSError:
        return None


def _content(entries) -> tuple[bool, list[str]]:
    holds_files, below = False, []
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                entry.name.encode()  # a name that is not text cannot stand in a list of the page
                below.append(entry.name)
            elif not holds_files:
                holds_files = entry.is_file()
        except (OSError, UnicodeEncodeError):
            continue
    return holds_files, below
