"""Temporary files, and the removal of those that a killed process left.

FOLDER/.kindred-SYSTEM-RANDOM.part    is renamed once it is complete

The process that writes the file holds a lock on it, so a temporary file without a lock is a leftover. The next process that writes into the
folder removes it. Locks do not reach across the machines of a shared drive, and some drives have none: there, a temporary file is removed
a day after it was last written to.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from . import locks

log = logging.getLogger(__name__)

MAX_AGE = 24 * 3600  # seconds since the last write, after which a file that no lock can protect is a leftover
_PART = re.compile(r"\.kindred-([0-9a-f]{8})-[0-9a-f]{16}\.part")


class TemporaryFile:
    """A file that is not complete yet: write to `file`, then rename it."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file

    def rename(self, path: Path) -> None:
        """Bring every byte to the disk, then replace `path` (in the same folder)."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if os.name == "nt":  # Windows cannot rename an open file
            self.file.close()
        self.path.replace(path)


@contextlib.contextmanager
def temporary(folder: Path) -> Iterator[TemporaryFile]:
    """A temporary file in `folder`, which is created if it is missing. The file is removed after the block unless it was renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder)
    path, handle = _create(folder)
    try:
        with os.fdopen(handle, "wb") as file:
            yield TemporaryFile(path, file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def clear(folder: Path) -> None:
    """Remove the temporary files in `folder` whose processes have ended. Skips what cannot be listed or removed."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _PART.fullmatch(entry.name)
            if match and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _remove(Path(entry.path), match[1])


def clear_below(folder: Path) -> None:
    """`clear` for `folder` and every folder below it."""
    for path, _, _ in os.walk(folder):
        clear(Path(path))


def _create(folder: Path) -> tuple[Path, int]:
    """An empty temporary file and its locked handle, open for writing."""
    for attempt in range(locks.ATTEMPTS):
        path = folder / f".kindred-{_system(folder.stat().st_dev)}-{secrets.token_hex(8)}.part"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if (locks.try_lock(handle) is not None and locks.Lock(path, handle, True).is_there()) or attempt == locks.ATTEMPTS - 1:
            break
        os.close(handle)  # another process cleared the folder before the lock was set
    return path, handle


def _remove(path: Path, system: str) -> None:
    """Remove the temporary file `path` of `system` if its process has ended."""
    lock = locks.Lock.take(path, create=False)
    if lock is None:
        return
    try:
        status = path.stat()
        ended = lock.supported and system == _system(path.parent.stat().st_dev)
        if not ended and _now(path.parent) - status.st_mtime <= MAX_AGE:
            return
        if os.name != "nt":  # Windows cannot remove an open file
            path.unlink()
    finally:
        os.close(lock.handle)
    path.unlink(missing_ok=True)
    log.info("Kindred: removed an incomplete file of %.1f MB, left by a process that ended while writing it: %s", status.st_size / 1e6, path)


@functools.cache
def _system(device: int) -> str:
    """An identifier of this running system and one of its drives. Processes with the same identifier see each other's locks."""
    try:
        running = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")  # containers of one kernel share it, as they share locks
    except OSError:
        running = platform.node()
    return hashlib.sha256(f"{running} {device}".encode()).hexdigest()[:8]


def _now(folder: Path) -> float:
    """The time on the clock that dates the files of `folder`, which may be a server's."""
    path, handle = _create(folder)
    try:
        return path.stat().st_mtime
    finally:
        os.close(handle)
        path.unlink()
