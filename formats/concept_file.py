"""A saved concept: a LoRA file that core's loader takes, one embedding file for each token, and in the LoRA's metadata how they belong together.

models/loras/kindred/NAME.safetensors        the differences, under core's LORA_MODEL names
models/embeddings/NAME.safetensors           the token (core: `embedding:NAME`)
models/embeddings/NAME-v2.safetensors        the second concept's token, where there are several
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from . import names, safefile, token_file
from .token import LearnedToken

_TOKENS = "kindred.tokens"  # JSON: [{"token", "class_word", "file"}], in the order of the concepts


@dataclass(frozen=True)
class SavedConcept:
    """`lora` may be empty (a token alone was learned); `embeddings` are the token files written, in the order of the tokens."""

    lora: Path
    embeddings: list[Path]


def save(
    lora: dict[str, torch.Tensor],
    tokens: list[LearnedToken],
    name: str,
    lora_folder: Path,
    embedding_folder: Path,
    *,
    dtype: torch.dtype = torch.float16,
    overwrite: bool = False,
    metadata: dict[str, str] | None = None,
) -> SavedConcept:
    """Write a concept under `name`; without `overwrite` a number is added to a name that is taken (`dog` -> `dog_2`).

    The embeddings are written first and the LoRA, which refers to them, last: a crash in between leaves no concept that cannot be
    loaded. ValueError for a name that no file can have, values beyond the dtype's range; OSError from the disk, the old files untouched.
    """
    name = names.safe_name(name)
    if not overwrite:
        name = _free_name(name, lora_folder, embedding_folder)
    stems = [name] + [f"{name}-{names.file_name(token.text)}" for token in tokens[1:]]
    if len(set(stems[: len(tokens)])) != len(tokens):
        stems = [name] + [f"{name}-{index + 2}" for index in range(len(tokens) - 1)]
    stored = {key: value.to(dtype) for key, value in lora.items()}
    for key, value in stored.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"The weight {key!r} does not fit into {str(dtype).removeprefix('torch.')}. Save in float32.")
    manifest = [{"token": token.text, "class_word": token.class_word, "file": f"{stem}.safetensors"} for token, stem in zip(tokens, stems, strict=False)]
    embeddings = [token_file.save(token, embedding_folder / entry["file"], overwrite=True) for token, entry in zip(tokens, manifest, strict=True)]
    path = lora_folder / f"{name}.safetensors"
    safefile.write(stored, path, {"format": "pt", "modelspec.title": name, **(metadata or {}), _TOKENS: json.dumps(manifest, ensure_ascii=False)})
    return SavedConcept(path, embeddings)


def load(path: Path, widths: dict[str, int], find_embedding: Callable[[str], Path | None]) -> tuple[dict[str, torch.Tensor], list[LearnedToken]]:
    """The differences and the tokens of the concept whose LoRA file is `path`.

    widths          encoder key -> embedding width of the CLIP that will carry the tokens
    find_embedding  file name -> path, or None when it is nowhere
    ValueError with the file's name when something is missing or damaged.
    """
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
    return lora, tokens


def _free_name(name: str, lora_folder: Path, embedding_folder: Path) -> str:
    number, free = 1, name
    while any((folder / f"{free}.safetensors").exists() for folder in (lora_folder, embedding_folder)):
        number += 1
        free = f"{name}_{number}"
    return free
