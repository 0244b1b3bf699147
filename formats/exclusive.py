"""Exclusive file names: lock folders against other processes, create files only under free names, compare names as file systems do."""

from __future__ import annotations

import logging
import os
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from . import locks

log = logging.getLogger(__name__)

ENDINGS = (".safetensors", ".pt", ".bin", ".ckpt", ".pth", ".sft")  # core looks for `embedding:bear` as `bear` with each of these endings
LOCK_FILE = ".kindred.lock"


@contextmanager
def locked(*folders: Path, wait: float = 300.0) -> Iterator[bool]:
    """Lock the folders against other processes that call this, and yield whether all of them are locked.

    False if the file system does not support locks, or if another process held one for `wait` seconds. Writers then rely on `create` alone.
    """
    handles: list[int | None] = []
    deadline = time.monotonic() + wait
    try:
        for folder in sorted({folder.resolve() for folder in folders}):  # sorted, so that two processes cannot block each other
            handles.append(_hold(folder, deadline))
        yield None not in handles
    finally:
        for handle in handles:
            if handle is not None:
                os.close(handle)


def create(part: Path, path: Path) -> None:
    """Rename the complete file `part` to `path`. FileExistsError if the name is taken; that file stays as it is. OSError leaves no file at `path`."""
    if os.name == "nt":
        part.rename(path)  # fails on Windows if `path` exists
        return
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: reserve the name with an empty file
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        try:
            part.replace(path)
        except OSError:
            path.unlink()  # the empty file
            raise
    else:
        part.unlink()


def folded(name: str) -> str:
    """The form in which names are compared: on some systems `Dog` and `dog`, or two encodings of an accent, name the same file."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def names_in(folders: Iterable[Path], below: bool = False) -> dict[str, list[Path]]:
    """Folded name -> the files that core finds by that name, with and without their ending. `below` includes subfolders, as core does for embeddings."""
    paths: dict[str, list[Path]] = {}
    for path in _files(folders, below):
        name = folded(path.name)
        for form in {name, *(name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending))}:
            paths.setdefault(form, []).append(path)
    return paths


def _files(folders: Iterable[Path], below: bool) -> Iterator[Path]:
    seen: set[str] = set()  # links may form a cycle, and two folders of the host may be the same one
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
    """An open handle that locks `folder` until it is closed, or None."""
    # The folder itself where possible, which leaves no file in it. Windows and some network drives lock only files that are open for writing.
    for path, flags in ((folder, os.O_RDONLY), (folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)):
        try:
            handle = os.open(path, flags, 0o666)
        except OSError:
            continue
        logged = False
        while (locked := locks.try_lock(handle)) is None and time.monotonic() < deadline:
            if not logged and deadline - time.monotonic() > 1:
                log.info("Kindred: waiting for another process that is saving a concept.")
            logged = True
            time.sleep(0.02)
        if locked:
            return handle
        os.close(handle)
        if locked is None:
            return None
    return None
