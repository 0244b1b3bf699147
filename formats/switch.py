"""All files of one saved concept as one change: their names are chosen together, and they become visible together.

Each file is written whole under a hidden name first. Then the LoRA file gets its real name, and from that moment the concept is the new
one: the LoRA's manifest says which vectors belong to it, and a reader that does not find them under the embedding's name finds
them under the hidden one. `settle` finishes what a killed process left so.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from . import exclusive, manifest, safefile
from .exclusive import folded
from .names import file_name

log = logging.getLogger(__name__)

_UNFINISHED_LORA = re.compile(r"\.kindred-lora-[0-9a-f]+\.part|\.[0-9a-f]{16}\.part")
_OLD = 24 * 3600.0  # seconds


@dataclass(frozen=True)
class Folders:
    """Where a concept is written, and all folders in which the host looks for such files (the first ones need not be repeated)."""

    lora: Path
    embedding: Path
    loras: Sequence[Path] = ()
    embeddings: Sequence[Path] = ()


@dataclass(frozen=True)
class Target:
    """The names of one save: the LoRA's and, for each token, the embedding's (without ending).

    replaced    files of the older concept of this name, which the new ones take the place of
    removed     its embeddings that the new concept has no use for
    """

    name: str
    stems: list[str]
    replaced: frozenset[Path] = frozenset()
    removed: tuple[Path, ...] = ()


@dataclass
class Choice:
    """The targets to try, best first. After the first one, `in_the_way` is the file that the wished name was refused for."""

    name: str
    tokens: list[str]
    folders: Folders
    overwrite: bool
    in_the_way: Path | None = field(default=None, init=False)

    def __iter__(self) -> Iterator[Target]:
        loras = exclusive.names_in([self.folders.lora, *self.folders.loras])
        embeddings = exclusive.names_in([self.folders.embedding, *self.folders.embeddings], below=True)
        if self.overwrite and (target := self._same_concept(loras, embeddings)):
            yield target
        name, number = self.name, 1
        while True:
            stems = _stems(name, self.tokens)
            taken = loras.get(folded(name), []) + [path for stem in stems for path in embeddings.get(folded(stem), [])]
            if not taken:
                yield Target(name, stems)
            elif self.in_the_way is None:
                self.in_the_way = taken[0]
            number += 1
            name = f"{self.name}_{number}"

    def _same_concept(self, loras: dict[str, list[Path]], embeddings: dict[str, list[Path]]) -> Target | None:
        """The wished name, if whatever bears it belongs to the saved concept of exactly that name."""
        stems = _stems(self.name, self.tokens)
        lora = self.folders.lora / f"{self.name}.safetensors"
        found = set(loras.get(folded(self.name), []))
        old = manifest.metadata_of(lora) if lora in found and not lora.is_symlink() else {}
        foreign = sorted(found - {lora} if manifest.KEY in old else found)
        for stem in stems:
            own = self.folders.embedding / f"{stem}.safetensors"
            here = set(embeddings.get(folded(stem), []))
            foreign += sorted(here - {own} if manifest.owner_of(own) == self.name else here)
            found |= here
        if foreign:
            self.in_the_way = foreign[0]
            return None
        with suppress(ValueError):  # a damaged manifest names no files that could be removed
            listed = [self.folders.embedding / Path(entry.file).name for entry in manifest.parse(old)]
            unused = tuple(path for path in listed if path.stem not in stems and manifest.owner_of(path) == self.name)
            return Target(self.name, stems, frozenset(found), unused)
        return Target(self.name, stems, frozenset(found))


def switch(lora: tuple[Path, Path], tokens: list[tuple[Path, Path]], target: Target) -> None:
    """Give the whole files their names: pairs of (hidden name, name). Only `target.replaced` are replaced.

    FileExistsError where another program has taken a name in the meantime, OSError from the disk: nothing has changed then.
    """
    new = [pair for pair in (lora, *tokens) if pair[1] not in target.replaced]
    made: list[Path] = []
    try:
        for part, path in new:  # a new LoRA first: without it, the embeddings would be nobody's after a kill
            exclusive.create(part, path)
            made.append(path)
        if lora not in new:
            lora[0].replace(lora[1])
    except OSError:
        for path in made:
            path.unlink(missing_ok=True)
        raise
    _sync(lora[1].parent)  # from here on the concept is the new one, whatever happens
    for part, path in tokens:
        if path in target.replaced:
            _finish(part, path)
    for path in target.removed:
        with suppress(OSError):
            path.unlink()
    for _, path in tokens[:1]:
        _sync(path.parent)


def settle(lora_folder: Path, embedding_folder: Path) -> None:
    """Finish or clear what killed processes left. Only while both folders are locked: what is unfinished then is nobody's."""
    for part in embedding_folder.glob(".kindred-token-*.part"):
        concept = manifest.owner_of(part) or ""
        lora = lora_folder / f"{concept}.safetensors"
        entries = []
        with suppress(ValueError):
            entries = manifest.parse(manifest.metadata_of(lora)) if concept == Path(concept).name and lora.is_file() else []
        path = next((embedding_folder / entry.file for entry in entries if entry.part == part.name), None)
        with suppress(OSError):
            if path is not None and path.parent == embedding_folder:
                if not path.is_symlink() and not path.exists():
                    exclusive.create(part, path)
                elif manifest.owner_of(path) == concept:
                    _finish(part, path)
            elif time.time() - part.stat().st_mtime > _OLD:  # a host with the same embeddings, but LoRA folders of its own, may need it
                part.unlink()
    for part in lora_folder.glob(".*.part"):
        if _UNFINISHED_LORA.fullmatch(part.name):
            part.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    with suppress(OSError):
        safefile.sync_folder(folder)


def _finish(part: Path, path: Path) -> None:
    try:
        part.replace(path)
        part.unlink(missing_ok=True)  # two names of one file stay two in a rename
    except OSError as error:  # the concept is saved: Load Concept reads the part, and the next save tries again
        log.warning("Kindred: the embedding %s could not take the place of the older one yet (%s). Load Concept finds it nevertheless.", path.stem, error)


def _stems(name: str, tokens: list[str]) -> list[str]:
    """The embeddings' names: the concept's for the first token, with the token or a number behind it for the others."""
    stems = [name, *(f"{name}-{file_name(token)}" for token in tokens[1:])][: len(tokens)]
    if len({folded(stem) for stem in stems}) < len(stems) or any(len(stem.encode()) > 240 for stem in stems):
        return [name, *(f"{name}-{number}" for number in range(2, len(tokens) + 1))]
    return stems
