"""A saved concept: a LoRA file that core's loader takes, one embedding file for each token, and in the LoRA's metadata how they belong together.

models/loras/kindred/NAME.safetensors        the differences, under core's LORA_MODEL names or in another layout
models/embeddings/NAME.safetensors           the token (core: `embedding:NAME`)
models/embeddings/NAME-v2.safetensors        the second concept's token, where there are several
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import foreign, layouts, low_rank, names, published, safefile, token_file
from .metadata import clean
from .token import LearnedToken

_TOKENS = "kindred.tokens"  # JSON: [{"token", "class_word", "file"}], in the order of the concepts
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
    """

    lora: Path
    embeddings: list[Path]
    layout: str = "comfyui"
    compressed: low_rank.Compressed | None = None


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
) -> SavedConcept:
    """Write a concept under `name`; without `overwrite` a number is added to a name that is taken (`dog` -> `dog_2`).

    The embeddings are written first and the LoRA, which refers to them, last: a crash in between leaves no concept that cannot be
    loaded. ValueError for a name that no file can have, values beyond the dtype's range, what the layout cannot hold;
    OSError from the disk, the old files untouched.
    """
    export = export or Export()
    name = names.safe_name(name)
    if not overwrite:
        name = _free_name(name, lora_folder, embedding_folder)
    stems = [name] + [f"{name}-{names.file_name(token.text)}" for token in tokens[1:]]
    if len(set(stems[: len(tokens)])) != len(tokens):
        stems = [name] + [f"{name}-{index + 2}" for index in range(len(tokens) - 1)]
    compressed = None
    if export.compress:
        compressed = low_rank.compress(lora, export.compress, dtype=dtype, always=export.layout == "diffusers", device=export.device, each=export.each)
    layout, state, about = layouts.from_core(compressed.state if compressed else lora, export.layout, export.layers, export.base)
    stored = state if layout == "custom_diffusion" else {key: _stored(value, dtype) for key, value in state.items()}
    for key, value in stored.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"The weight {key!r} does not fit into {str(dtype).removeprefix('torch.')}. Save in float32.")
    manifest = [{"token": token.text, "class_word": token.class_word, "file": f"{stem}.safetensors"} for token, stem in zip(tokens, stems, strict=False)]
    embeddings = [token_file.save(token, embedding_folder / entry["file"], overwrite=True) for token, entry in zip(tokens, manifest, strict=True)]
    path = lora_folder / f"{name}.safetensors"
    about = {"format": "pt", "modelspec.title": name, "ss_output_name": name, **clean({**getattr(lora, "metadata", {}), **(metadata or {})}), **about}
    if layout != "comfyui":
        about["kindred.layout"] = layout
    if layout in ("diffusers", "custom_diffusion"):
        about["modelspec.implementation"] = "diffusers"
    if compressed and compressed.ranks:
        about |= {"ss_network_module": "networks.lora", "ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}  # as kohya's own truncation says
        about |= {"kindred.compress": str(export.compress), "kindred.compress_error": f"{compressed.error:.3g}"}
    safefile.write(stored, path, {**about, _TOKENS: json.dumps(manifest, ensure_ascii=False)})
    return SavedConcept(path, embeddings, layout, compressed if compressed and compressed.ranks else None)


def load(
    path: Path, widths: dict[str, int], find_embedding: Callable[[str], Path | None], convert: Callable[[State, dict[str, str]], State] | None = None
) -> tuple[State, list[LearnedToken]]:
    """The differences and the tokens of the concept whose LoRA file, or whose published folder, is `path`.

    widths          encoder key -> embedding width of the CLIP that will carry the tokens
    find_embedding  file name -> path, or None when it is nowhere
    convert         (state, metadata) in any layout -> state under core's names; without it the state is returned as it stands in the file
    ValueError with the file's name when something is missing or damaged.
    """
    if path.is_dir():
        state, tokens, metadata = published.load(path, widths)
        return convert(state, metadata) if convert else state, tokens
    lora, metadata = safefile.read(path)
    try:
        manifest = json.loads(metadata.get(_TOKENS, "[]"))
        wanted = [(str(entry["token"]), str(entry["class_word"]), str(entry["file"])) for entry in manifest]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"The metadata of {str(path)!r} is damaged ({error}). Save the concept again.") from error
    tokens = []
    for text, class_word, file in wanted:
        names.check_file_name(file, "embedding's file name")  # it comes from a file that anybody may have made
        place = find_embedding(file)
        if place is None:
            raise ValueError(
                f"The concept {path.stem!r} needs the embedding {file!r} for its token {text!r}, which is in none of the embeddings folders. Put it back beside the others."
            )
        found = token_file.load(place, widths, text)
        tokens.append(LearnedToken(text, class_word, found.vectors, found.metadata))
    lora, metadata, bundled = foreign.complete(path, lora, metadata, widths)
    return convert(lora, metadata) if convert else lora, [*tokens, *bundled]


def _stored(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Weights in `dtype`; single numbers (alpha) and whole numbers as they are."""
    return value.to(dtype) if value.is_floating_point() and value.ndim else value


def _free_name(name: str, lora_folder: Path, embedding_folder: Path) -> str:
    number, free = 1, name
    while any((folder / f"{free}.safetensors").exists() for folder in (lora_folder, embedding_folder)):
        number += 1
        free = f"{name}_{number}"
    return free
