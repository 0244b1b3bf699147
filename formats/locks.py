"""Locks of the operating system on open files. A lock ends with the process that holds it, even after a kill."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

if os.name == "nt":
    import msvcrt
else:
    import fcntl

ATTEMPTS = 8  # another process may remove the file between its opening and its locking; more only where the drive cannot identify files
_BUSY = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, getattr(errno, "EDEADLOCK", errno.EAGAIN)}


def try_lock(handle: int) -> bool | None:
    """Lock the open file, without waiting. True: locked. None: another process holds the lock. False: the file system does not support locks."""
    try:
        if os.name == "nt":
            os.lseek(handle, 2**40, os.SEEK_SET)  # Windows makes locked bytes unreadable to others, so lock a byte beyond the end
            try:
                msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            finally:
                os.lseek(handle, 0, os.SEEK_SET)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return None if error.errno in _BUSY else False
    return True


class Lock:
    """A lock on the file `path`, held until `release` or the end of this process.

    supported   False where the file system does not support locks: other processes are not kept out
    identified  False where the drive cannot tell whether two files are the same: any file at `path` counts as the locked one
    """

    def __init__(self, path: Path, handle: int, supported: bool):
        self.path, self.handle, self.supported, self.identified = path, handle, supported, True

    @classmethod
    def take(cls, path: Path, create: bool = True) -> Lock | None:
        """Lock `path`, or return None if another process holds it. OSError if the file cannot be opened."""
        for attempt in range(ATTEMPTS):
            handle = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
            locked = try_lock(handle)
            lock = cls(path, handle, bool(locked))
            if locked is None:
                break
            lock.identified = lock.is_there()
            if lock.identified or attempt == ATTEMPTS - 1:
                return lock
            os.close(handle)  # the previous holder removed the file in the meantime
        os.close(handle)
        return None

    def is_there(self) -> bool:
        """Is the locked file still the one at `path`? It is not once someone has deleted its folder."""
        try:
            status = self.path.stat()
            return not self.identified or os.path.samestat(os.fstat(self.handle), status)
        except OSError:
            return False

    def release(self) -> None:
        """Remove the file and release its lock."""
        if self.is_there():
            with contextlib.suppress(OSError):  # Windows cannot remove an open file
                self.path.unlink()
        os.close(self.handle)
        if os.name == "nt":
            with contextlib.suppress(OSError):
                self.path.unlink()
