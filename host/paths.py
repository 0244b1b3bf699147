"""The host's folders: where files are looked for and where ours are written."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import folder_paths

from ..formats import published
from ..formats.names import check_file_name
from . import listing

log = logging.getLogger(__name__)

SUBFOLDER = "kindred"  # of models/loras; groups the concepts in the lists of core's loaders too


def lora_folder() -> Path:
    """Where concepts' LoRA files are written: `kindred` in the host's first folder for LoRAs."""
    return Path(folder_paths.get_folder_paths("loras")[0]) / SUBFOLDER


def embedding_folder() -> Path:
    """Where tokens are written: the host's first folder for embeddings."""
    return Path(folder_paths.get_folder_paths("embeddings")[0])


def all_lora_folders() -> list[Path]:
    """Where the host finds concepts' LoRA files: `kindred` in each of its folders for LoRAs."""
    return [Path(folder) / SUBFOLDER for folder in folder_paths.get_folder_paths("loras")]


def all_embedding_folders() -> list[Path]:
    """Where the host finds embeddings."""
    return [Path(folder) for folder in folder_paths.get_folder_paths("embeddings")]


def run_folder() -> Path:
    """Where trainings keep their states: `kindred/runs` in the host's output folder."""
    return Path(folder_paths.get_output_directory()) / "kindred" / "runs"


def saved_concepts() -> list[str]:
    """Names of the concepts that `Load Concept` offers, from every LoRA folder of the host, sorted; published folders end in `/`.

    Empty, with a line in the log, where the host cannot list its LoRA folders: the pack's other nodes do not depend on them.
    """
    try:
        files = [Path(name) for name in folder_paths.get_filename_list("loras")]
    except OSError as error:
        log.warning("Kindred: the LoRA folders cannot be listed, so Load Concept offers none: %s", error)
        return []
    saved = {file.stem for file in files if file.parent.name == SUBFOLDER and file.suffix == ".safetensors"}
    folders = {published.folder_of(file) for file in files if published.is_weights(file.name)}
    return sorted(saved | {f"{folder.as_posix()}/" for folder in folders if folder.name and folder.as_posix() != SUBFOLDER})


def find_concept(name: str) -> Path:
    """The LoRA file of the concept `name`, or the published folder where it ends in `/`. ValueError with the folder when there is none."""
    if name.endswith("/"):
        return _published_folder(name)
    check_file_name(name, "concept's name")
    for folder in folder_paths.get_folder_paths("loras"):
        path = Path(folder) / SUBFOLDER / f"{name}.safetensors"
        if os.path.isfile(path):  # noqa: PTH113 (see photo_folder)
            return path
    raise ValueError(f"There is no saved concept {name!r} in {lora_folder()}. Save one with Save Concept, then refresh the list (key R).")


def _published_folder(name: str) -> Path:
    parts = [check_file_name(part, "folder's name") for part in name.removesuffix("/").split("/")]
    for folder in folder_paths.get_folder_paths("loras"):
        if published.weights_file(Path(folder, *parts)):
            return Path(folder, *parts)
    raise ValueError(f"There is no folder {name!r} with {published.WEIGHTS[1]!r} under models/loras. Put it there, then refresh the list (key R).")


def find_embedding(name: str) -> Path | None:
    """The embedding file of that file name, in any of the host's folders for embeddings."""
    for folder in folder_paths.get_folder_paths("embeddings"):
        path = Path(folder) / name
        if os.path.isfile(path):  # noqa: PTH113 (see photo_folder)
            return path
    return None


def photo_folders() -> list[str]:
    """The folders inside the host's input folder that hold files, as `/`-separated names, sorted. Links to folders are not listed."""
    return listing.folders(Path(folder_paths.get_input_directory()))


def photo_folder(name: str) -> Path:
    """The folder `name` inside the host's input folder. ValueError when it would lie outside or is not there."""
    root = Path(folder_paths.get_input_directory()).resolve()
    try:
        place = (root / name).resolve()
    except (OSError, ValueError, RuntimeError):  # no name that a file can have, or a link to itself
        place = root
    if place == root or not place.is_relative_to(root):
        raise ValueError(f"The folder {name!r} is not inside ComfyUI's input folder. Put the photos into a folder there and choose it.")
    if not os.path.isdir(place):  # noqa: PTH112 (Path's own raises OSError for a name that is too long)
        raise ValueError(
            f"There is no folder {name!r} in ComfyUI's input folder ({root}). Make it, put three to six photos in, and press R to refresh the list."
        )
    return place


def prior_folder(name: str) -> Path:
    """Where prior images of that cache name are kept: inside the host's output folder, where people find pictures."""
    return Path(folder_paths.get_output_directory()) / SUBFOLDER / "prior" / name


def fingerprint(name: str) -> str:
    """Changes when the files of the concept do, so that the executor loads a concept again that was saved again."""
    try:
        path = find_concept(name)
    except ValueError:
        return "missing"
    # A LoRA's manifest says which vectors belong to it: its time and size stand for the embeddings as well.
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    return ";".join(f"{file}:{file.stat().st_mtime_ns}:{file.stat().st_size}" for file in files)
