"""Names that belong to one writer: folders locked against other processes, files created only where there is none, names compared as hosts do."""

from __future__ import annotations

import logging
import os
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

ENDINGS = (".safetensors", ".pt", ".bin", ".ckpt", ".pth", ".sft")  # `embedding:bear` means `bear` with the first of these that there is
LOCK_FILE = ".kindred.lock"


@contextmanager
def locked(*folders: Path, wait: float = 300.0) -> Iterator[bool]:
    """Hold the folders against other processes that call this, and yield whether all of them are held.

    The system drops the locks when the process ends, also after a kill, so nothing can stay reserved. False where the file system
    has no locks, or another process kept one for `wait` seconds: whoever writes then relies on `create` alone.
    """
    handles: list[int | None] = []
    deadline = time.monotonic() + wait
    try:
        for folder in sorted({folder.resolve() for folder in folders}):  # always in this order, so that two processes cannot block each other
            handles.append(_hold(folder, deadline))
        yield None not in handles
    finally:
        for handle in handles:
            if handle is not None:
                os.close(handle)


def create(part: Path, path: Path) -> None:
    """Give the whole file `part` the name `path`. FileExistsError if there is already something of that name, which is left as it is."""
    if os.name == "nt":
        part.rename(path)  # fails on Windows if `path` exists
        return
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: reserve the name by an empty file
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        part.replace(path)
    else:
        part.unlink()


def folded(name: str) -> str:
    """The form in which two names are compared: on some systems `Dog` and `dog`, or an accent written in two ways, are one file."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def names_in(folders: Iterable[Path], below: bool = False) -> dict[str, list[Path]]:
    """Folded name -> the files that a host finds by it, with and without their ending. `below` looks into subfolders too, as core does for embeddings."""
    found: dict[str, list[Path]] = {}
    for path in _files(folders, below):
        name = folded(path.name)
        for form in {name, *(name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending))}:
            found.setdefault(form, []).append(path)
    return found


def _files(folders: Iterable[Path], below: bool) -> Iterator[Path]:
    seen: set[str] = set()  # links may lead in circles, and two of the host's folders to one place
    for top in folders:
        for folder, inner, files in os.walk(top, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                inner.clear()
                continue
            seen.add(real)
            yield from (Path(folder, file) for file in files)
            if not below:
                break


def _hold(folder: Path, deadline: float) -> int | None:
    """A handle that holds `folder` until it is closed, or None."""
    # The folder itself where the system can: nothing is left in it. Windows, and some network file systems, lock only files open for writing.
    for path, flags in ((folder, os.O_RDONLY), (folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)):
        handle = None
        try:
            handle = os.open(path, flags, 0o666)
            waited = False
            while not _lock(handle):
                if time.monotonic() >= deadline:
                    os.close(handle)
                    return None
                if not waited and deadline - time.monotonic() > 1:
                    log.info("Kindred: waiting for another process that is saving a concept.")
                waited = True
                time.sleep(0.02)
            return handle
        except OSError:
            if handle is not None:
                with suppress(OSError):
                    os.close(handle)
    return None


def _lock(handle: int) -> bool:
    """Lock the open file. False while another process has it locked; OSError where locks are not supported."""
    if os.name == "nt":
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
