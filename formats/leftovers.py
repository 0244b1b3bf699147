"""Files in the making, and what a killed process leaves of them.

FOLDER/.kindred-SYSTEM-RANDOM.part    becomes another file when it is whole

Its writer holds the system's lock on it, which ends with the process, however that ends. So a part that nobody locks is a leftover,
and the next process that writes into the folder removes it. A lock says nothing about a part that another machine wrote on a shared
drive, or where the drive knows no locks: such a part is removed a day after its last byte.
"""

from __future__ import annotations

import contextlib
import errno
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

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

log = logging.getLogger(__name__)

PATIENCE = 24 * 3600  # seconds without a byte, after which a part that no lock speaks for is a leftover
_PART = re.compile(r"\.kindred-([0-9a-f]{8})-[0-9a-f]{16}\.part")
_TRIES = 8  # more are needed only where a drive does not tell which file is which
_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, getattr(errno, "EDEADLOCK", errno.EAGAIN)}


class Lock:
    """The system's lock on the file `path`, held until `release` or the end of this process.

    sure   False where the drive knows no locks: then nothing is excluded
    known  False where the drive does not tell which file is which: then a file at `path` counts as this one
    """

    def __init__(self, path: Path, handle: int, sure: bool):
        self.path, self.handle, self.sure, self.known = path, handle, sure, True

    @classmethod
    def take(cls, path: Path, create: bool = True) -> Lock | None:
        """None when somebody else holds it. OSError when the file cannot be opened."""
        for attempt in range(_TRIES):
            handle = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
            held = _lock(handle)
            lock = cls(path, handle, bool(held))
            if held is None:
                break
            lock.known = lock.is_there()
            if lock.known or attempt == _TRIES - 1:
                return lock
            os.close(handle)  # the one who held it has removed the file meanwhile
        os.close(handle)
        return None

    def is_there(self) -> bool:
        """Is the locked file still the one at `path`? Not after somebody deleted its folder."""
        try:
            about = self.path.stat()
            return not self.known or os.path.samestat(os.fstat(self.handle), about)
        except OSError:
            return False

    def release(self) -> None:
        """Remove the file and let go."""
        if self.is_there():
            with contextlib.suppress(OSError):  # Windows removes no open file
                self.path.unlink()
        os.close(self.handle)
        if fcntl is None:
            with contextlib.suppress(OSError):
                self.path.unlink()


class Part:
    """A file in the making: write to `file`, then let it become `path`."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file

    def become(self, path: Path) -> None:
        """Take the place of `path` (in the same folder), with every byte on the disk before."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if fcntl is None:  # Windows renames no open file
            self.file.close()
        self.path.replace(path)


@contextlib.contextmanager
def part(folder: Path) -> Iterator[Part]:
    """A part in `folder`, which is made where it is missing. What has not become another file is gone after the block."""
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder)
    path, handle = _new(folder)
    try:
        with os.fdopen(handle, "wb") as file:
            yield Part(path, file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def clear(folder: Path) -> None:
    """Remove the parts in `folder` whose writers are dead. Never raises for what cannot be listed or removed."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _PART.fullmatch(entry.name)
            if match and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _remove(Path(entry.path), match[1])


def clear_below(folder: Path) -> None:
    """`clear` for `folder` and every folder below it."""
    for place, _, _ in os.walk(folder):
        clear(Path(place))


def _new(folder: Path) -> tuple[Path, int]:
    """An empty part and its locked handle, open for writing."""
    for attempt in range(_TRIES):
        path = folder / f".kindred-{_system(folder.stat().st_dev)}-{secrets.token_hex(8)}.part"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        if (_lock(handle) is not None and Lock(path, handle, True).is_there()) or attempt == _TRIES - 1:
            break
        os.close(handle)  # another process looked through the folder just between the two
    return path, handle


def _remove(path: Path, system: str) -> None:
    lock = Lock.take(path, create=False)
    if lock is None:
        return
    try:
        about = path.stat()
        dead = lock.sure and system == _system(path.parent.stat().st_dev)
        if not dead and _now(path.parent) - about.st_mtime <= PATIENCE:
            return
        if fcntl:  # else Windows, which removes no open file
            path.unlink()
    finally:
        os.close(lock.handle)
    path.unlink(missing_ok=True)
    log.info("Kindred: removed %s (%.1f MB), left by a process that ended while it wrote.", path, about.st_size / 1e6)


def _lock(handle: int) -> bool | None:
    """True: locked. None: somebody else has it locked. False: this drive knows no locks."""
    try:
        if fcntl:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(handle, 2**40, os.SEEK_SET)  # Windows keeps others from reading what is locked, so lock a byte that is not there
            try:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(handle, 0, os.SEEK_SET)
    except OSError as error:
        return None if error.errno in _HELD else False
    return True


@functools.cache
def _system(device: int) -> str:
    """Names a running system and a drive on it: within one of these, locks are seen by all."""
    try:
        running = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")  # containers of one kernel share it, as they share locks
    except OSError:
        running = platform.node()
    return hashlib.sha256(f"{running} {device}".encode()).hexdigest()[:8]


def _now(folder: Path) -> float:
    """The time by the clock that dates the files of `folder`, which may be a server's."""
    path, handle = _new(folder)
    try:
        return path.stat().st_mtime
    finally:
        os.close(handle)
        path.unlink()
