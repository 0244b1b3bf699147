"""Folder lists for the nodes' inputs. Unreadable folders are left out, and unchanged folders are not read again."""

from __future__ import annotations

import os
import time
from pathlib import Path

# A file system's clock may be as coarse as two seconds. A folder that has just changed may change again within the same tick.
_SETTLED = 3e9  # nanoseconds

_Entry = tuple[int, bool, list[str]]  # a folder: (time of its last change in ns, does it hold files, names of its subfolders)

_known: dict[str, dict[str, _Entry]] = {}  # root -> path of a folder below it -> its entry


def folders(root: Path) -> list[str]:
    """The folders below `root` that hold files, as `/`-separated names, sorted.

    Links to folders are not followed, so there are no loops. Unreadable folders and names that are not valid text are left out.
    Never raises OSError, because the host would then lose every node of the pack.
    """
    top = os.fspath(root)
    known, now = _known.get(top, {}), {}
    names, waiting = [], [("", top)]
    while waiting:
        name, path = waiting.pop()
        entry = _entry(path, known.get(path))
        if entry is None:
            continue
        now[path] = entry
        _, holds_files, below = entry
        if holds_files and name:
            names.append(name)
        waiting += [(f"{name}/{child}" if name else child, os.path.join(path, child)) for child in below]  # noqa: PTH118 (called 100,000 times)
    _known[top] = {path: entry for path, entry in now.items() if time.time_ns() - entry[0] > _SETTLED}
    return sorted(names)


def _entry(path: str, known: _Entry | None) -> _Entry | None:
    """The entry of the folder `path`: `known` if the folder has not changed, None if it cannot be read."""
    try:
        changed = os.stat(path, follow_symlinks=True).st_mtime_ns  # noqa: PTH116
        if known and known[0] == changed:
            return known
        with os.scandir(path) as entries:
            return changed, *_content(entries)
    except OSError:
        return None


def _content(entries) -> tuple[bool, list[str]]:
    holds_files, below = False, []
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                entry.name.encode()  # the page's list cannot hold a name that is not valid text
                below.append(entry.name)
            elif not holds_files:
                holds_files = entry.is_file()
        except (OSError, UnicodeEncodeError):
            continue
    return holds_files, below
