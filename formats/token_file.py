"""Embedding files of textual inversion, in the layouts that core ComfyUI, diffusers, A1111 and kohya share.

Written   safetensors only. One encoder: ONE tensor [n, width] named by the token (core reads the first tensor of a file, diffusers
          and A1111 the only one). Several encoders: one tensor for each key (`clip_l`, `clip_g`), the SDXL layout of core and A1111.
Read      those; `string_to_param` of A1111 and of Textual Inversion's authors; diffusers' `.bin`; kohya's `emb_params` and lists; `text_encoders_0/1`
          of diffusers' pivotal tuning; embeddings bundled in a LoRA file (`bundle_emb.NAME.*`). Pickles only by weights-only loading.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import torch

from . import pickled, safefile, token_rows
from .metadata import clean
from .names import check_file_name
from .token import FILE_PREFIX, LearnedToken, check_token_text

log = logging.getLogger(__name__)

EXTENSIONS = (".safetensors", ".pt", ".bin")
MAX_FILE = 256 * 2**20  # bytes; an embedding has kilobytes, but a pickle is read whole before it can be checked
MAX_NUMBERS = 2**24  # of one embedding; a tensor that claims more was made from a few bytes
_META = "kindred."
_KEPT = {token_rows.KEY, token_rows.VECTORS}  # of a token itself, not of its file
OWNER = "kindred.concept"  # in the metadata: the saved concept that the file belongs to
_ENCODER_NAMES = {"text_encoders_0": "clip_l", "text_encoders_1": "clip_g", "t5": "t5xxl"}
_NAMELESS = {"*", "emb_params"}  # placeholders of trainers; the token's name is the file name
_BUNDLE = re.compile(r"bundle_emb\.(?P<name>.+)\.(?P<part>string_to_param\.\*|[A-Za-z0-9_]+)")


class _ParameterDict:
    """Stands in for torch's ParameterDict, in which Textual Inversion's authors keep their vectors: its contents without its code."""

    def tensors(self) -> dict[str, object]:
        parameters = vars(self).get("_parameters")
        return dict(parameters) if isinstance(parameters, Mapping) else {}


def _parameter_dicts():
    """A context in which weights-only loading reads a ParameterDict as the class above. Older torch cannot, and refuses such files."""
    with contextlib.suppress(TypeError, AttributeError):
        return torch.serialization.safe_globals([(_ParameterDict, "torch.nn.modules.container.ParameterDict")])
    return contextlib.nullcontext()


def save(token: LearnedToken, path: str | os.PathLike, overwrite: bool = True) -> Path:
    """Write `token` to `path` (.safetensors), atomically: at any moment `path` is the old file or the new one, never an incomplete one.

    Raises ValueError for a name that some system does not allow, a link at `path`, or vectors that are not finite;
    FileExistsError without `overwrite`; OSError from the disk (the old file is then untouched).
    """
    path = Path(os.fspath(path))
    check_file_name(path.name)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"The embedding file {path.name!r} must end in '.safetensors'; other formats can carry code.")
    if path.is_symlink():
        raise ValueError(f"The embedding file is a link to another file. Remove it or choose another name: {str(path)!r}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"The embedding file exists already. Choose another name, or allow it to be overwritten: {str(path)!r}")
    tensors, metadata = content(token)
    return safefile.write(tensors, path, metadata)


def content(token: LearnedToken, concept: str = "") -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a token's file. `concept` is the saved concept that owns it. ValueError if vectors are not finite."""
    if not token.vectors:
        raise ValueError(f"The token {token.text!r} has no vectors to save.")
    for key, value in token.vectors.items():
        _check_vectors(value, f"the token {token.text!r}, encoder {key!r}")
    tensors = {key: value.detach().to("cpu", torch.float32).contiguous().clone() for key, value in token.vectors.items()}
    encoders = ",".join(tensors)
    if len(tensors) == 1:
        tensors = {token.text: next(iter(tensors.values()))}
    metadata = {"format": "pt", **clean({str(k): str(v) for k, v in token.metadata.items() if k in _KEPT or not str(k).startswith(_META)})}
    metadata |= {_META + "token": token.text, _META + "class_word": token.class_word, _META + "encoders": encoders}
    if concept:
        metadata[OWNER] = concept
    return tensors, metadata


def load(path: str | os.PathLike, widths: Mapping[str, int], text: str | None = None) -> LearnedToken:
    """Read the token in `path` for a CLIP whose encoders have `widths` (encoder key -> embedding width).

    text   the token's name in prompts; default: the name in the file, else `<file name>`. In a LoRA with several bundled
           embeddings it also selects one.
    Raises ValueError with the path for a missing or damaged file, a pickle that would run code, a file without an
    embedding, values that are not finite, or widths that no encoder of the CLIP has.
    """
    path = Path(os.fspath(path))
    if not path.is_file():
        raise ValueError(f"The embedding file does not exist: {str(path)!r}")
    content, metadata = _read(path)
    name, tensors = _layout(path, content, text)
    vectors = _for_encoders(path, tensors, widths, metadata.get(_META + "encoders", ""))
    notes = _unused(path, tensors, vectors, widths)
    for note in notes:
        log.warning("Kindred: %s", note)
    own = {key.removeprefix(_META): value for key, value in metadata.items() if key.startswith(_META)}
    extra = {key: value for key, value in metadata.items() if (key in _KEPT or not key.startswith(_META)) and key != "format"}
    return LearnedToken(text or _token_name(own.get("token") or name, path), own.get("class_word", ""), vectors, extra, notes)


def own_widths(path: Path) -> dict[str, int]:
    """Encoder key -> width of the vectors in a file that `save` or `content` made, for a reader that has no CLIP. ValueError if it is another file."""
    tensors, metadata = safefile.read(path)
    encoders = metadata.get(_META + "encoders", "").split(",")
    if len(encoders) != len(tensors) or not all(encoders):
        raise ValueError(f"The embedding file names no encoders. Save the concept again: {str(path)!r}")
    return {key: (tensors[key] if key in tensors else next(iter(tensors.values()))).shape[-1] for key in encoders}


def token(name: str, vectors: torch.Tensor, widths: Mapping[str, int], path: Path) -> LearnedToken:
    """The token `name` with `vectors` [n, width] or [width] from a file `path` that holds more than tokens. ValueError as in `load`."""
    return LearnedToken(_token_name(name, path), "", _for_encoders(path, {"": vectors.detach()}, widths, ""))


def unbundle(path: Path, state: Mapping[str, torch.Tensor], widths: Mapping[str, int]) -> tuple[dict[str, torch.Tensor], list[LearnedToken]]:
    """(the weights of a LoRA file, the tokens of the embeddings bundled in it). ValueError as in `load`."""
    bundles = _bundles(state)
    tokens = []
    for name, tensors in bundles.items():
        vectors = _for_encoders(path, tensors, widths, "")
        tokens.append(LearnedToken(_token_name(name, path), "", vectors, notes=_unused(path, tensors, vectors, widths)))
    return {key: value for key, value in state.items() if not (bundles and _BUNDLE.fullmatch(key))}, tokens


def find_file(name: str, folders: list[str] | str | None) -> Path:
    """The file that core reads for `embedding:name`, within `folders`. Raises ValueError if it is missing or lies outside of them."""
    name = name.removeprefix(FILE_PREFIX)
    if not name or "\x00" in name or Path(name).is_absolute() or ".." in Path(name.replace("\\", "/")).parts:
        raise ValueError(f"{name!r} is not the name of an embedding. Write it as in the embeddings folder.")
    roots = [folders] if isinstance(folders, str) else list(folders or [])
    for root in roots:
        for folder in (root, *sorted(str(p) for p in Path(root).rglob("*") if p.is_dir())):
            for candidate in (Path(folder, name + ending) for ending in ("", *EXTENSIONS)):
                if os.path.isfile(candidate):  # noqa: PTH113 (Path.is_file raises OSError for a name that is too long)
                    if not any(candidate.resolve().is_relative_to(Path(r).resolve()) for r in roots):
                        raise ValueError(f"The embedding {name!r} is a link that leaves the embeddings folder. Put the file itself there.")
                    return candidate
    raise ValueError(f"There is no embedding {name!r}. Searched: {', '.join(map(repr, roots)) or 'no folder, because this CLIP has none'}")


def _read(path: Path) -> tuple[object, dict[str, str]]:
    """The content and the metadata of a file; of a safetensors file only the tensors that can belong to an embedding."""
    if not pickled.is_safetensors(path):
        with _parameter_dicts():
            return pickled.read(path, MAX_FILE, "an embedding"), {}
    with safefile.opened(path) as file:
        keys = list(file.keys())
        bundled = [key for key in keys if key.startswith("bundle_emb.")]
        if bundled or len(keys) <= 64:
            return {key: file.get_tensor(key) for key in bundled or keys}, dict(file.metadata() or {})
    raise ValueError(f"The file holds {len(keys)} tensors and no embedding; it looks like a model or a LoRA: {str(path)!r}")


def _layout(path: Path, content: object, text: str | None) -> tuple[str, dict[str, torch.Tensor]]:
    """(token name or "", tensors by encoder key, or by "" if the layout does not name the encoder)."""
    if isinstance(content, Mapping) and "string_to_param" in content:  # A1111, and Textual Inversion's authors
        parameters = content["string_to_param"]
        parameters = parameters.tensors() if isinstance(parameters, _ParameterDict) else parameters
        inner = _tensors(parameters) if isinstance(parameters, Mapping) else {}
        name = _select(path, inner, text) if inner else _refuse(path, content)
        return (str(content.get("name") or name), {"": inner[name]})
    if isinstance(content, list):  # one mapping for each encoder
        parts = [value for entry in content if isinstance(entry, Mapping) for value in _tensors(entry).values()]
        return ("", {f"#{i}": value for i, value in enumerate(parts)}) if parts else _refuse(path, content)
    tensors = _tensors(content) if isinstance(content, Mapping) else {}
    bundles = _bundles(tensors)
    if bundles:
        name = _select(path, bundles, text)
        return name, bundles[name]
    if len(tensors) == 1:
        name, value = next(iter(tensors.items()))
        return ("", {_ENCODER_NAMES.get(name, name): value}) if _is_encoder(name) else (name, {"": value})
    if tensors and all(_is_encoder(key) for key in tensors):
        return "", {_ENCODER_NAMES.get(key, key): value for key, value in tensors.items()}
    return _refuse(path, content)


def _select(path: Path, embeddings: Mapping[str, object], text: str | None) -> str:
    """The name of the embedding that `text` selects. ValueError if there are several and `text` is none of them."""
    if len(embeddings) > 1 and text not in embeddings:
        names = ", ".join(map(repr, sorted(embeddings)))
        raise ValueError(f"The file holds several embeddings: {names}. Select one by its name: {str(path)!r}")
    return text if text is not None and text in embeddings else next(iter(embeddings))


def _bundles(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Name -> encoder key ("" if the layout does not name it) -> vectors, of the embeddings bundled in a LoRA."""
    bundles: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if match := _BUNDLE.fullmatch(key):
            bundles.setdefault(match["name"], {})["" if "*" in match["part"] else _ENCODER_NAMES.get(match["part"], match["part"])] = value
    return bundles


def _unused(path: Path, tensors: Mapping[str, torch.Tensor], vectors: Mapping[str, torch.Tensor], widths: Mapping[str, int]) -> tuple[str, ...]:
    """A warning if the CLIP has no encoder for some of the file's vectors."""
    count = len(tensors) - len(vectors)
    if count <= 0:
        return ()
    unused = [key for key in tensors if key not in vectors and _is_encoder(key)] or [f"{count} groups"]
    return (f"The vectors for {', '.join(unused)} are not used, because this CLIP has only {', '.join(widths)}: {path.name!r}.",)


def _for_encoders(path: Path, tensors: dict[str, torch.Tensor], widths: Mapping[str, int], encoder: str) -> dict[str, torch.Tensor]:
    """Assign each tensor to an encoder: by its key, by `encoder` (from the metadata), else by its width."""
    vectors: dict[str, torch.Tensor] = {}
    for key, value in tensors.items():
        value = value.reshape(1, -1) if value.ndim == 1 else value.reshape(-1, value.shape[-1]) if value.ndim == 3 else value
        _check_vectors(value, repr(str(path)))
        named = key if key in widths else encoder if not key and encoder in widths else ""
        fits = [named] if named else [] if _is_encoder(key) else [k for k, w in widths.items() if w == value.shape[-1] and k not in vectors]
        if named and widths[named] != value.shape[-1]:
            raise ValueError(
                f"The embedding has vectors of width {value.shape[-1]} for {named}, this CLIP expects {widths[named]}. "
                f"It was made for another model family. Use one of this family: {str(path)!r}"
            )
        if fits:
            vectors[fits[0]] = value.to(torch.float32).clone()
    if not vectors:
        present = ", ".join(sorted({f"{k.strip('#0123456789') or 'an encoder'} of width {v.shape[-1]}" for k, v in tensors.items()}))
        expected = ", ".join(f"{key} {width}" for key, width in widths.items())
        raise ValueError(
            f"The embedding has vectors for {present}; this CLIP has {expected}. It was made for another model family. Use one of this family: {str(path)!r}"
        )
    return vectors


def _check_vectors(value: torch.Tensor, source: str) -> None:
    if not value.is_floating_point() or value.is_sparse or value.ndim != 2 or 0 in value.shape:
        raise ValueError(f"An embedding has shape {list(value.shape)} and type {value.dtype}; expected floating point [count, width]. It is in {source}.")
    if not torch.isfinite(value).all():
        raise ValueError(f"An embedding contains NaN or infinity: its training diverged. Use an earlier save. It is in {source}.")


def _tensors(mapping: Mapping) -> dict[str, torch.Tensor]:
    return {str(key): value.detach() for key, value in mapping.items() if torch.is_tensor(value) and value.numel() <= MAX_NUMBERS}


def _is_encoder(key: str) -> bool:
    """Does the key name a text encoder? OneTrainer adds `clip_l_out`, the vectors of an encoder's output, which no CLIP of the host can use."""
    return key in _ENCODER_NAMES or re.fullmatch(r"(?:clip_[a-z]|[a-z0-9]*t5[a-z0-9]*|llama|gemma\w*|qwen\w*)(?:_out)?", key) is not None


def _token_name(name: str, path: Path) -> str:
    """`name` if a prompt can contain it, else a token made from the file's name."""
    stem = re.sub(r"[^\w.-]+", "-", path.stem).strip("-")[:60] or "v1"
    with contextlib.suppress(ValueError):
        if name not in _NAMELESS:
            return check_token_text(name)
    return check_token_text(f"<{stem}>")


def _refuse(path: Path, content: object) -> NoReturn:
    keys = ", ".join(map(repr, list(content)[:4])) if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(f"The file holds no embedding in a layout of ComfyUI, diffusers, A1111 or kohya, but {keys or 'nothing'}: {str(path)!r}")
