"""Saved concepts: a LoRA file for core's loader, one embedding file for each token, and a manifest in the LoRA's metadata that lists them.

models/loras/kindred/NAME.safetensors        the weight differences, under core's LORA_MODEL names or in another layout
models/embeddings/NAME.safetensors           the token (core: `embedding:NAME`)
models/embeddings/NAME-v2.safetensors        the second token, if several concepts were learned together
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import exclusive, foreign, layouts, low_rank, manifest, names, published, safefile, switch, token_file, token_rows
from .metadata import clean
from .token import LearnedToken

State = dict[str, torch.Tensor]


class LearnedLora(dict):
    """A LORA_MODEL (state dict under core's names) with metadata. Core's nodes use it as an ordinary dict.

    metadata  of its file (`formats.metadata.training_metadata`)
    notes     sentences about what the file does not say and what was assumed instead
    kept      of a run's result: the steps whose files lie beside it (`kept_steps.KeptSteps`), or None
    """

    def __init__(self, state: State, metadata: dict[str, str] | None = None, notes: Sequence[str] = ()):
        super().__init__(state)
        self.metadata, self.notes = dict(metadata or {}), list(notes)
        self.kept: object | None = None


@dataclass(frozen=True)
class Export:
    """Options for writing the weight differences.

    layout    one of `layouts.LAYOUTS`
    compress  share of the squared norm of a full difference that a LoRA of the lowest sufficient rank keeps; 0 = stored in full
    layers    the names of the model's layers in other tools; needed by layouts other than core's
    base      core layer -> the base model's weight; needed by Custom Diffusion's layout
    device    where differences are decomposed
    each      called before each decomposition, to allow an interrupt
    """

    layout: str = "comfyui"
    compress: float = 0.0
    layers: layouts.LayerNames | None = None
    base: layouts.BaseWeight | None = None
    device: torch.device | str = "cpu"
    each: Callable[[], None] | None = None


@dataclass(frozen=True)
class SavedConcept:
    """The files of a concept that was written.

    lora        its state is empty if only a token was learned
    embeddings  in the order of the tokens
    layout      as written: a `diffusers` export of K and V in full is `custom_diffusion`
    compressed  ranks and error of the truncation; None if nothing was truncated
    removed     embeddings of the replaced concept that the new one does not need
    note        the reason, as a sentence, why the name differs from the requested one; "" if it does not
    """

    lora: Path
    embeddings: list[Path]
    layout: str = "comfyui"
    compressed: low_rank.Compressed | None = None
    removed: tuple[Path, ...] = ()
    note: str = ""

    @property
    def name(self) -> str:
        """The name under which Load Concept lists it."""
        return self.lora.name.removesuffix(".safetensors")


def save(
    lora: State,
    tokens: list[LearnedToken],
    name: str,
    lora_folder: Path,
    embedding_folder: Path,
    *,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
    metadata: dict[str, str] | None = None,
    export: Export | None = None,
    lora_folders: Sequence[Path] = (),
    embedding_folders: Sequence[Path] = (),
) -> SavedConcept:
    """Write a concept under `name`, or under a name with a number if one of its file names is taken (`dog` -> `dog_2`).

    A name is taken if any of the folders holds a file of that name, in any case and with any ending; `*_folders` are the further folders that
    core searches. With `overwrite`, the files of the saved concept of exactly this name are replaced; other files never are.
    The save is atomic, even if the process is killed (see `switch`), and two processes that save at once write two complete concepts.
    ValueError for a name that no file can have, values beyond the dtype's range, or weights that the layout cannot hold; OSError from the disk.
    """
    export = export or Export()
    name = names.safe_name(name)
    compressed = None
    if export.compress:
        compressed = low_rank.compress(lora, export.compress, dtype=dtype, always=export.layout == "diffusers", device=export.device, each=export.each)
    layout, state, added = layouts.from_core(compressed.state if compressed else lora, export.layout, export.layers, export.base)
    stored = state if layout == "custom_diffusion" else {key: _stored(value, dtype) for key, value in state.items()}
    for key, value in stored.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"The weight {key!r} is not finite in {str(dtype).removeprefix('torch.')}. Save in float32.")
    for token in tokens:
        token_file.content(token)  # raises before any file is written
    about = {**clean({**getattr(lora, "metadata", {}), **(metadata or {})}), **added}
    if layout != "comfyui":
        about["kindred.layout"] = layout
    if layout in ("diffusers", "custom_diffusion"):
        about["modelspec.implementation"] = "diffusers"
    if compressed and compressed.ranks:
        about |= {"ss_network_module": "networks.lora", "ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}  # as kohya's own truncation writes
        about |= {"kindred.compress": str(export.compress), "kindred.compress_error": f"{compressed.error:.3g}"}
    folders = switch.Folders(lora_folder, embedding_folder, lora_folders, embedding_folders)
    candidates = switch.Candidates(name, [token.text for token in tokens], folders, overwrite)
    try:
        target = _write_files(stored, about, tokens, candidates)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"The concept {name!r} could not be saved: {reason}. No file was changed. Free some space or make the folders writable, then save "
            f"again: {str(lora_folder)!r}, {str(embedding_folder)!r}"
        ) from error
    embeddings = [embedding_folder / f"{stem}.safetensors" for stem in target.stems]
    note = _rename_reason(candidates, overwrite) if target.name != name else ""
    kept = compressed if compressed and compressed.ranks else None
    return SavedConcept(lora_folder / f"{target.name}.safetensors", embeddings, layout, kept, target.removed, note)


def _write_files(stored: State, about: dict[str, str], tokens: list[LearnedToken], candidates: switch.Candidates) -> switch.Target:
    """Write all files under the first target whose names no other program takes in the meantime."""
    folders = candidates.folders
    for folder in (folders.lora, folders.embedding):
        folder.mkdir(parents=True, exist_ok=True)
    with exclusive.locked(folders.lora, folders.embedding) as alone:
        if alone:
            switch.settle(folders.lora, folders.embedding)
        for target in candidates:
            entries = [
                manifest.Entry(token.text, token.class_word, f"{stem}.safetensors", manifest.digests(token.vectors))
                for token, stem in zip(tokens, target.stems, strict=True)
            ]
            pairs = [(folders.embedding / entry.part, folders.embedding / entry.file) for entry in entries]
            lora = (folders.lora / f".kindred-lora-{secrets.token_hex(8)}.part", folders.lora / f"{target.name}.safetensors")
            written: list[Path] = []
            try:
                for token, (part, _) in zip(tokens, pairs, strict=True):
                    if alone:
                        part.unlink(missing_ok=True)  # left by a process that was killed while saving the same content
                    tensors, text = token_file.content(token, target.name)
                    safefile.prepare(tensors, part, text)
                    written.append(part)
                named = {"format": "pt", "modelspec.title": target.name, "ss_output_name": target.name, **about}
                safefile.prepare(stored, lora[0], {**named, manifest.KEY: manifest.dump(entries)})
                written.append(lora[0])
                for folder in (folders.embedding, folders.lora):
                    safefile.sync_folder(folder)
                switch.switch(lora, pairs, target)
            except OSError as error:
                for part in written:
                    part.unlink(missing_ok=True)
                if not isinstance(error, FileExistsError):
                    raise
                continue  # another program was faster
            return target
    raise AssertionError("there is always another number")


def _rename_reason(candidates: switch.Candidates, overwrite: bool) -> str:
    path = candidates.conflict
    if path is None:
        return f"Another program took the name {candidates.name!r} at the same moment."
    file = f"{path.parent.name}/{path.name}"
    if overwrite:
        return f"{file} is not part of a saved concept {candidates.name!r}, so it was not replaced."
    return f"The name {candidates.name!r} was taken: {file}."


def load(
    path: Path, widths: dict[str, int], find_embedding: Callable[[str], Path | None], convert: Callable[[State, dict[str, str]], State] | None = None
) -> tuple[State, list[LearnedToken]]:
    """The weight differences and the tokens of a concept. `path` is its LoRA file, or a folder that another tool wrote.

    widths          encoder key -> embedding width of the CLIP that will carry the tokens
    find_embedding  file name -> path, or None if no folder has it
    convert         (state, metadata) in any layout -> state under core's names; without it, the state is returned as stored
    ValueError with the file's name if something is missing or damaged, or if an embedding comes from another training than the LoRA.
    """
    if path.is_dir():
        state, tokens, metadata = published.load(path, widths)
        return _loaded(state, metadata, convert), tokens
    while True:
        lora, metadata = safefile.read(path)
        try:
            entries = manifest.parse(metadata)
        except ValueError as error:
            raise ValueError(f"The metadata of the concept {path.stem!r} is damaged ({error}). Save the concept again: {str(path)!r}") from error
        try:
            tokens = [_token(path, entry, widths, find_embedding) for entry in entries]
        except ValueError:
            if manifest.metadata_of(path).get(manifest.KEY) != metadata.get(manifest.KEY):
                continue  # saved again in the meantime
            raise
        _note_rows(tokens, metadata)
        lora, metadata, bundled = foreign.complete(path, lora, metadata, widths)
        return _loaded(lora, metadata, convert), [*tokens, *bundled]


def _note_rows(tokens: list[LearnedToken], metadata: dict[str, str]) -> None:
    """Put onto each token the rows that the LoRA's metadata names, which the embedding's own may lack (another tool may have written it again)."""
    rows = metadata.get(token_rows.KEY, token_rows.ALL)
    if rows == token_rows.ALL or token_rows.TOKENS not in metadata:
        return
    token_rows.reach(rows)
    known = token_rows.tags_of(metadata)
    for token in tokens:
        if known & {token_rows.tag_of(token.metadata, key) for key in token.vectors}:
            continue  # perhaps turned toward its class since (Token SLERP)
        tags = dict(zip(token.vectors, manifest.digests(token.vectors), strict=True))
        if not known & set(tags.values()):
            raise ValueError(
                f"The concept acts on the rows of its tokens, and {token.text!r} is not one of them: its file is another training's. Save the concept again."
            )
        token.metadata.update({token_rows.KEY: rows, token_rows.VECTORS: json.dumps(tags)})


def _loaded(state: State, metadata: dict[str, str], convert: Callable[[State, dict[str, str]], State] | None) -> LearnedLora:
    converted = convert(state, metadata) if convert else state
    return LearnedLora(converted, metadata, getattr(converted, "notes", ()))


def _token(path: Path, entry: manifest.Entry, widths: dict[str, int], find_embedding: Callable[[str], Path | None]) -> LearnedToken:
    """The token of one entry of the concept at `path`."""
    names.check_file_name(entry.file, "embedding's file name")  # the file may come from anyone
    problem = (
        f"The concept {path.stem!r} needs the embedding {entry.file!r} for its token {entry.token!r}, and none of the embeddings folders holds it. "
        "Put it back into one of them."
    )
    for file in (entry.file, entry.part, entry.file):  # again, because another process may have renamed the part in the meantime
        embedding = find_embedding(file)
        if embedding is None:
            continue
        try:
            token = token_file.load(embedding, widths, entry.token)
        except ValueError as error:
            problem = str(error)
            continue
        if entry.fits(token.vectors):
            if file == entry.part:
                _settle(path.parent, embedding.parent)
            return LearnedToken(entry.token, entry.class_word, token.vectors, token.metadata, token.notes)
        problem = (
            f"The embedding {entry.file!r} is not the one that the concept {path.stem!r} was saved with: "
            "the file of another training has replaced one of the two. Save the concept again, or put back the embedding of the same training."
        )
    raise ValueError(problem)


def _settle(lora_folder: Path, embedding_folder: Path) -> None:
    """Complete a save that was killed, if no process is saving now and the folders are writable."""
    with contextlib.suppress(OSError), exclusive.locked(lora_folder, embedding_folder, wait=0) as alone:
        if alone:
            switch.settle(lora_folder, embedding_folder)


def _stored(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Weights in `dtype`; scalars (alpha) and integers unchanged."""
    return value.to(dtype) if value.is_floating_point() and value.ndim else value
