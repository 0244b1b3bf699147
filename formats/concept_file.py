"""A saved concept: a LoRA file that core's loader takes, one embedding file for each token, and in the LoRA's metadata how they belong together.

models/loras/kindred/NAME.safetensors        the differences, under core's LORA_MODEL names or in another layout
models/embeddings/NAME.safetensors           the token (core: `embedding:NAME`)
models/embeddings/NAME-v2.safetensors        the second concept's token, where there are several
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from . import exclusive, foreign, layouts, low_rank, manifest, names, published, safefile, switch, token_file
from .metadata import clean
from .token import LearnedToken

State = dict[str, torch.Tensor]


class LearnedLora(dict):
    """A LORA_MODEL (core-named state dict) that knows how it was made. Core's nodes take it for the dict that it is.

    metadata  what goes into its file (`formats.metadata.training_metadata`)
    """

    def __init__(self, state: State, metadata: dict[str, str] | None = None):
        super().__init__(state)
        self.metadata = dict(metadata or {})


@dataclass(frozen=True)
class Export:
    """How the differences are written.

    layout    one of `layouts.LAYOUTS`
    compress  share of the squared norm of full differences that is kept, as a LoRA of the lowest rank that does; 0 = stored in full
    layers    how other tools call the model's layers, base its weights: what layouts other than core's are made with
    device    where differences are decomposed; each is called before each of them
    """

    layout: str = "comfyui"
    compress: float = 0.0
    layers: layouts.LayerNames | None = None
    base: layouts.BaseWeight | None = None
    device: torch.device | str = "cpu"
    each: Callable[[], None] | None = None


@dataclass(frozen=True)
class SavedConcept:
    """`lora` may be empty (a token alone was learned); `embeddings` are the token files written, in the order of the tokens.

    layout      as written: a `diffusers` export of K and V in full is `custom_diffusion`
    compressed  what truncation cost; None where nothing was truncated
    removed     embeddings of the replaced concept that the new one has no use for
    note        a sentence: why the name is not the one that was asked for; "" where it is
    """

    lora: Path
    embeddings: list[Path]
    layout: str = "comfyui"
    compressed: low_rank.Compressed | None = None
    removed: tuple[Path, ...] = ()
    note: str = ""

    @property
    def name(self) -> str:
        """The name that Load Concept knows it by."""
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
    """Write a concept under `name`, or under a name with a number where one of its files is taken (`dog` -> `dog_2`).

    A name is taken if any file of it, in any of the folders (`*_folders`: where the host looks besides), has it in any case and with any
    ending. With `overwrite`, files of the saved concept of this very name are not taken but replaced; files of others never are.
    All files are there afterwards or none is new, also after a kill (see `switch`); two processes get two whole concepts.
    ValueError for a name that no file can have, values beyond the dtype's range, what the layout cannot hold; OSError from the disk.
    """
    export = export or Export()
    name = names.safe_name(name)
    compressed = None
    if export.compress:
        compressed = low_rank.compress(lora, export.compress, dtype=dtype, always=export.layout == "diffusers", device=export.device, each=export.each)
    layout, state, about = layouts.from_core(compressed.state if compressed else lora, export.layout, export.layers, export.base)
    stored = state if layout == "custom_diffusion" else {key: _stored(value, dtype) for key, value in state.items()}
    for key, value in stored.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"The weight {key!r} does not fit into {str(dtype).removeprefix('torch.')}. Save in float32.")
    for token in tokens:
        token_file.content(token)  # a token that cannot be written is found before anything is
    about = {**clean({**getattr(lora, "metadata", {}), **(metadata or {})}), **about}
    if layout != "comfyui":
        about["kindred.layout"] = layout
    if layout in ("diffusers", "custom_diffusion"):
        about["modelspec.implementation"] = "diffusers"
    if compressed and compressed.ranks:
        about |= {"ss_network_module": "networks.lora", "ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}  # as kohya's own truncation says
        about |= {"kindred.compress": str(export.compress), "kindred.compress_error": f"{compressed.error:.3g}"}
    folders = switch.Folders(lora_folder, embedding_folder, lora_folders, embedding_folders)
    choice = switch.Choice(name, [token.text for token in tokens], folders, overwrite)
    try:
        target = _write(stored, about, tokens, choice)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"The concept {name!r} could not be saved: {reason}. No file was changed. Free some space or make the folders writable, then save "
            f"again: {str(lora_folder)!r}, {str(embedding_folder)!r}"
        ) from error
    embeddings = [embedding_folder / f"{stem}.safetensors" for stem in target.stems]
    note = _why(choice, overwrite) if target.name != name else ""
    kept = compressed if compressed and compressed.ranks else None
    return SavedConcept(lora_folder / f"{target.name}.safetensors", embeddings, layout, kept, target.removed, note)


def _write(stored: State, about: dict[str, str], tokens: list[LearnedToken], choice: switch.Choice) -> switch.Target:
    """Write all files under the first target whose names nobody takes in the meantime."""
    folders = choice.folders
    for folder in (folders.lora, folders.embedding):
        folder.mkdir(parents=True, exist_ok=True)
    with exclusive.locked(folders.lora, folders.embedding) as alone:
        if alone:
            switch.settle(folders.lora, folders.embedding)
        for target in choice:
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
                        part.unlink(missing_ok=True)  # of a process that was killed with the same content
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


def _why(choice: switch.Choice, overwrite: bool) -> str:
    path = choice.in_the_way
    if path is None:
        return f"Another program took the name {choice.name!r} at the same moment."
    file = f"{path.parent.name}/{path.name}"
    if overwrite:
        return f"{file} is not part of a saved concept {choice.name!r}, so it was not replaced."
    return f"The name {choice.name!r} was taken: {file}."


def load(
    path: Path, widths: dict[str, int], find_embedding: Callable[[str], Path | None], convert: Callable[[State, dict[str, str]], State] | None = None
) -> tuple[State, list[LearnedToken]]:
    """The differences and the tokens of the concept whose LoRA file, or whose published folder, is `path`.

    widths          encoder key -> embedding width of the CLIP that will carry the tokens
    find_embedding  file name -> path, or None when it is nowhere
    convert         (state, metadata) in any layout -> state under core's names; without it the state is returned as it stands in the file
    ValueError with the file's name when something is missing or damaged, or when an embedding is of another training than the LoRA.
    """
    if path.is_dir():
        state, tokens, metadata = published.load(path, widths)
        return convert(state, metadata) if convert else state, tokens
    while True:
        lora, metadata = safefile.read(path)
        try:
            entries = manifest.parse(metadata)
        except ValueError as error:
            raise ValueError(f"The metadata of {str(path)!r} is damaged ({error}). Save the concept again.") from error
        try:
            tokens = [_token(path, entry, widths, find_embedding) for entry in entries]
        except ValueError:
            if manifest.metadata_of(path).get(manifest.KEY) != metadata.get(manifest.KEY):
                continue  # it was saved again while we read it
            raise
        lora, metadata, bundled = foreign.complete(path, lora, metadata, widths)
        return convert(lora, metadata) if convert else lora, [*tokens, *bundled]


def _token(path: Path, entry: manifest.Entry, widths: dict[str, int], find_embedding: Callable[[str], Path | None]) -> LearnedToken:
    """The token of one entry of the concept at `path`."""
    names.check_file_name(entry.file, "embedding's file name")  # it comes from a file that anybody may have made
    problem = (
        f"The concept {path.stem!r} needs the embedding {entry.file!r} for its token {entry.token!r}, which is in none of the embeddings folders. "
        "Put it back beside the others."
    )
    for file in (entry.file, entry.part, entry.file):  # the last time for a part that got its name just between the two
        place = find_embedding(file)
        if place is None:
            continue
        try:
            found = token_file.load(place, widths, entry.token)
        except ValueError as error:
            problem = str(error)
            continue
        if entry.fits(found.vectors):
            if file == entry.part:
                _settle(path.parent, place.parent)
            return LearnedToken(entry.token, entry.class_word, found.vectors, found.metadata, found.notes)
        problem = (
            f"The embedding {entry.file!r} is not the one that the concept {path.stem!r} was saved with: one of the two was replaced by another training. "
            "Save the concept again, or put the embedding of the same training back."
        )
    raise ValueError(problem)


def _settle(lora_folder: Path, embedding_folder: Path) -> None:
    """Finish a save that was killed, where nobody is saving now and the folders can be written to."""
    with contextlib.suppress(OSError), exclusive.locked(lora_folder, embedding_folder, wait=0) as alone:
        if alone:
            switch.settle(lora_folder, embedding_folder)


def _stored(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Weights in `dtype`; single numbers (alpha) and whole numbers as they are."""
    return value.to(dtype) if value.is_floating_point() and value.ndim else value
