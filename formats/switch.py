"""Atomic saves of a concept's files: their names are chosen together, and they become visible together.

Each file is first written under a hidden name. Then the LoRA file gets its real name, and from that moment the concept is the new one: the
LoRA's manifest lists the vectors that belong to it, and a reader that does not find them under the embedding's name finds them under the
hidden name. `settle` completes the save of a process that was killed in between.
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
_MAX_AGE = 24 * 3600.0  # seconds


@dataclass(frozen=True)
class Folders:
    """The folders that a concept is written to, and all folders that core searches for such files (the first two need not be repeated)."""

    lora: Path
    embedding: Path
    loras: Sequence[Path] = ()
    embeddings: Sequence[Path] = ()


@dataclass(frozen=True)
class Target:
    """The file names of one save, without endings: `name` for the LoRA, and one of `stems` for the embedding of each token.

    replaced    files of the older concept of this name that the new ones replace
    removed     embeddings of the older concept that the new one does not need
    """

    name: str
    stems: list[str]
    replaced: frozenset[Path] = frozenset()
    removed: tuple[Path, ...] = ()


@dataclass
class Candidates:
    """The targets to try, best first. After the first one, `conflict` is the file because of which the requested name was not used."""

    name: str
    tokens: list[str]
    folders: Folders
    overwrite: bool
    conflict: Path | None = field(default=None, init=False)

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
            elif self.conflict is None:
                self.conflict = taken[0]
            number += 1
            name = f"{self.name}_{number}"

    def _same_concept(self, loras: dict[str, list[Path]], embeddings: dict[str, list[Path]]) -> Target | None:
        """The requested name, if every file that has it belongs to the saved concept of exactly that name."""
        stems = _stems(self.name, self.tokens)
        lora = self.folders.lora / f"{self.name}.safetensors"
        replaced = set(loras.get(folded(self.name), []))
        old = manifest.metadata_of(lora) if lora in replaced and not lora.is_symlink() else {}
        foreign = sorted(replaced - {lora} if manifest.KEY in old else replaced)
        for stem in stems:
            own = self.folders.embedding / f"{stem}.safetensors"
            taken = set(embeddings.get(folded(stem), []))
            foreign += sorted(taken - {own} if manifest.owner_of(own) == self.name else taken)
            replaced |= taken
        if foreign:
            self.conflict = foreign[0]
            return None
        with suppress(ValueError):  # a damaged manifest lists no files to remove
            listed = [self.folders.embedding / Path(entry.file).name for entry in manifest.parse(old)]
            unused = tuple(path for path in listed if path.stem not in stems and manifest.owner_of(path) == self.name)
            return Target(self.name, stems, frozenset(replaced), unused)
        return Target(self.name, stems, frozenset(replaced))


def switch(lora: tuple[Path, Path], tokens: list[tuple[Path, Path]], target: Target) -> None:
    """Rename the complete files, pairs of (hidden name, name). Only `target.replaced` are replaced.

    FileExistsError if another program has taken a name in the meantime, OSError from the disk; then nothing has changed.
    """
    new = [pair for pair in (lora, *tokens) if pair[1] not in target.replaced]
    made: list[Path] = []
    try:
        for part, path in new:  # a new LoRA first: without it, the embeddings would belong to no concept after a kill
            exclusive.create(part, path)
            made.append(path)
        if lora not in new:
            lora[0].replace(lora[1])
    except OSError:
        for path in made:
            path.unlink(missing_ok=True)
        raise
    _sync(lora[1].parent)  # from here on, the concept is the new one
    for part, path in tokens:
        if path in target.replaced:
            _finish(part, path)
    for path in target.removed:
        with suppress(OSError):
            path.unlink()
    for _, path in tokens[:1]:
        _sync(path.parent)


def settle(lora_folder: Path, embedding_folder: Path) -> None:
    """Complete or remove unfinished saves of killed processes. Call it only while both folders are locked: then no living process owns them."""
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
            elif time.time() - part.stat().st_mtime > _MAX_AGE:  # another ComfyUI that shares only the embeddings folder may need it
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
        part.unlink(missing_ok=True)  # a rename between two links to one file leaves both
    except OSError as error:  # the concept is saved: Load Concept reads the hidden file, and the next save tries again
        log.warning("Kindred: the embedding %s could not be renamed yet (%s). Load Concept finds it under its hidden name.", path.stem, error)


def _stems(name: str, tokens: list[str]) -> list[str]:
    """The embeddings' names: the concept's name for the first token, followed by the token or a number for the others."""
    stems = [name, *(f"{name}-{file_name(token)}" for token in tokens[1:])][: len(tokens)]
    if len({folded(stem) for stem in stems}) < len(stems) or any(len(stem.encode()) > 240 for stem in stems):
        return [name, *(f"{name}-{number}" for number in range(2, len(tokens) + 1))]
    return stems
