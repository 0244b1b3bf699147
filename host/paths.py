"""The host's folders that the pack reads from and writes to."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import folder_paths

from ..formats import published
from ..formats.names import check_file_name
from . import listing

log = logging.getLogger(__name__)

SUBFOLDER = "kindred"  # of models/loras; also groups the concepts in the lists of core's loaders


def lora_folder() -> Path:
    """The folder that concepts' LoRA files are written to: `kindred` in the host's first LoRA folder."""
    return Path(folder_paths.get_folder_paths("loras")[0]) / SUBFOLDER


def embedding_folder() -> Path:
    """The folder that tokens are written to: the host's first embedding folder."""
    return Path(folder_paths.get_folder_paths("embeddings")[0])


def all_lora_folders() -> list[Path]:
    """The folders with concepts' LoRA files: `kindred` in each of the host's LoRA folders."""
    return [Path(folder) / SUBFOLDER for folder in folder_paths.get_folder_paths("loras")]


def all_embedding_folders() -> list[Path]:
    """The host's embedding folders."""
    return [Path(folder) for folder in folder_paths.get_folder_paths("embeddings")]


def run_folder() -> Path:
    """The folder with the states of trainings: `kindred/runs` in the host's output folder."""
    return Path(folder_paths.get_output_directory()) / "kindred" / "runs"


def saved_concepts() -> list[str]:
    """Names of the concepts in the list of `Load Concept`, from every LoRA folder of the host, sorted. Names of published folders end in `/`.

    Empty, with a warning in the log, if the host cannot list its LoRA folders, so that the pack's other nodes still load.
    """
    try:
        files = [Path(name) for name in folder_paths.get_filename_list("loras")]
    except OSError as error:
        log.warning("Kindred: ComfyUI cannot list its LoRA folders, so the list of Load Concept is empty: %s", error)
        return []
    saved = {file.stem for file in files if file.parent.name == SUBFOLDER and file.suffix == ".safetensors"}
    folders = {published.folder_of(file) for file in files if published.is_weights(file.name)}
    return sorted(saved | {f"{folder.as_posix()}/" for folder in folders if folder.name and folder.as_posix() != SUBFOLDER})


def find_concept(name: str) -> Path:
    """The LoRA file of the concept `name`, or the published folder if the name ends in `/`. Raises ValueError if there is none."""
    if name.endswith("/"):
        return _published_folder(name)
    check_file_name(name, "concept's name")
    for folder in folder_paths.get_folder_paths("loras"):
        path = Path(folder) / SUBFOLDER / f"{name}.safetensors"
        if os.path.isfile(path):  # noqa: PTH113 (see photo_folder)
            return path
    raise ValueError(f"There is no saved concept {name!r}. Save one with Save Concept, then press R to refresh the list. (Folder: {lora_folder()})")


def _published_folder(name: str) -> Path:
    parts = [check_file_name(part, "folder's name") for part in name.removesuffix("/").split("/")]
    for folder in folder_paths.get_folder_paths("loras"):
        if published.weights_file(Path(folder, *parts)):
            return Path(folder, *parts)
    raise ValueError(f"There is no folder {name!r} with {published.WEIGHTS[1]!r} in models/loras. Put it there, then press R to refresh the list.")


def find_embedding(name: str) -> Path | None:
    """The embedding file `name` in any of the host's embedding folders, or None."""
    for folder in folder_paths.get_folder_paths("embeddings"):
        path = Path(folder) / name
        if os.path.isfile(path):  # noqa: PTH113 (see photo_folder)
            return path
    return None


def photo_folders() -> list[str]:
    """The folders with files inside the host's input folder, as `/`-separated names, sorted. Links to folders are not listed."""
    return listing.folders(Path(folder_paths.get_input_directory()))


def photo_folder(name: str) -> Path:
    """The folder `name` inside the host's input folder. Raises ValueError if it is outside or does not exist."""
    root = Path(folder_paths.get_input_directory()).resolve()
    try:
        path = (root / name).resolve()
    except (OSError, ValueError, RuntimeError):  # not a valid file name, or a link to itself
        path = root
    if path == root or not path.is_relative_to(root):
        raise ValueError(f"The folder {name!r} is not inside ComfyUI's input folder. Put the photos into a folder there and choose it.")
    if not os.path.isdir(path):  # noqa: PTH112 (Path.is_dir raises OSError for a name that is too long)
        raise ValueError(
            f"There is no folder {name!r} in ComfyUI's input folder. Make it, put three to six photos in, and press R to refresh the list. "
            f"(Input folder: {root})"
        )
    return path


def prior_folder(name: str) -> Path:
    """The folder with the prior images of the cache `name`. It is in the host's output folder, where people look for images."""
    return Path(folder_paths.get_output_directory()) / SUBFOLDER / "prior" / name


def concept_fingerprint(name: str) -> str:
    """A text that changes with the files of the concept `name`, so that the executor reloads a concept that was saved again."""
    try:
        path = find_concept(name)
    except ValueError:
        return "missing"
    # A LoRA's manifest lists its embeddings, so its time and size stand for the embeddings as well.
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    return ";".join(f"{file}:{file.stat().st_mtime_ns}:{file.stat().st_size}" for file in files)
