"""Embedding files: what textual inversion leaves on disk, in the layouts that core ComfyUI, diffusers, A1111 and kohya share.

Written   safetensors only. One encoder: ONE tensor [n, width] named by the token (core takes the first of a file, diffusers
          and A1111 the only one). Several: one tensor for each encoder key (`clip_l`, `clip_g`), core's and A1111's SDXL layout.
Read      those, A1111's and Textual Inversion's authors' `string_to_param`, diffusers' `.bin`, kohya's `emb_params` and lists, `text_encoders_0/1` of diffusers'
          pivotal tuning, and embeddings bundled in a LoRA file (`bundle_emb.NAME.*`). Pickles only by weights-only loading.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from . import pickled, safefile
from .metadata import clean
from .names import check_file_name
from .token import FILE_PREFIX, LearnedToken, check_token_text

log = logging.getLogger(__name__)

EXTENSIONS = (".safetensors", ".pt", ".bin")
MAX_PICKLE = 256 * 2**20  # bytes; an embedding has kilobytes, and a pickle is read whole before it can be judged
MAX_NUMBERS = 2**24  # of one embedding; a tensor that claims more came from a few bytes
_META = "kindred."
OWNER = "kindred.concept"  # in the metadata: the saved concept that the file is a part of
_ENCODER_NAMES = {"text_encoders_0": "clip_l", "text_encoders_1": "clip_g", "t5": "t5xxl"}
_NAMELESS = {"*", "emb_params"}  # what trainers write where the file name is the token's only name
_BUNDLE = re.compile(r"bundle_emb\.(?P<name>.+)\.(?P<part>string_to_param\.\*|[A-Za-z0-9_]+)")


class _ParameterDict:
    """What stands in a pickle for torch's class of that name, in which Textual Inversion's authors keep their vectors: its contents, no behaviour."""

    def tensors(self) -> dict[str, object]:
        held = vars(self).get("_parameters")
        return dict(held) if isinstance(held, Mapping) else {}


def _parameter_dicts():
    """While open, weights-only loading takes a ParameterDict for the class above. Older torch has no way to say so and refuses such files."""
    with contextlib.suppress(TypeError, AttributeError):
        return torch.serialization.safe_globals([(_ParameterDict, "torch.nn.modules.container.ParameterDict")])
    return contextlib.nullcontext()


def save(token: LearnedToken, path: str | os.PathLike, overwrite: bool = True) -> Path:
    """Write `token` to `path` (.safetensors): the old file or the new one is there at any moment, never a half.

    Raises ValueError for a name that some system cannot hold, a link in the file's place, or vectors that are not finite;
    FileExistsError without `overwrite`; OSError from the disk itself (the old file is then untouched).
    """
    path = Path(os.fspath(path))
    check_file_name(path.name)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"The embedding file {path.name!r} must end in '.safetensors'; other formats can carry code.")
    if path.is_symlink():
        raise ValueError(f"{str(path)!r} is a link to another place. Remove it or choose another name.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{str(path)!r} exists already. Choose another name, or allow it to be overwritten.")
    tensors, metadata = content(token)
    return safefile.write(tensors, path, metadata)


def content(token: LearnedToken, concept: str = "") -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors and the metadata of a token's file. `concept` is the saved concept that owns it. ValueError for vectors that are not finite."""
    if not token.vectors:
        raise ValueError(f"Token {token.text!r} has no vectors to save.")
    for key, value in token.vectors.items():
        _check_vectors(value, f"token {token.text!r}, encoder {key!r}")
    tensors = {key: value.detach().to("cpu", torch.float32).contiguous().clone() for key, value in token.vectors.items()}
    encoders = ",".join(tensors)
    if len(tensors) == 1:
        tensors = {token.text: next(iter(tensors.values()))}
    metadata = {"format": "pt", **clean({str(k): str(v) for k, v in token.metadata.items() if not str(k).startswith(_META)})}
    metadata |= {_META + "token": token.text, _META + "class_word": token.class_word, _META + "encoders": encoders}
    if concept:
        metadata[OWNER] = concept
    return tensors, metadata


def load(path: str | os.PathLike, widths: Mapping[str, int], text: str | None = None) -> LearnedToken:
    """Read the token in `path` for a CLIP whose encoders have `widths` (encoder key -> embedding width).

    text   how prompts shall call it; default: the name in the file, else `<file name>`. In a LoRA with several bundled
           embeddings it also picks one.
    Raises ValueError with the path for a missing or damaged file, a pickle that wants to run code, a file without an
    embedding, values that are not finite, and widths that no encoder of the CLIP has.
    """
    path = Path(os.fspath(path))
    if not path.is_file():
        raise ValueError(f"There is no embedding file {str(path)!r}.")
    content, metadata = _read(path)
    name, tensors = _layout(path, content, text)
    vectors = _for_encoders(path, tensors, widths, metadata.get(_META + "encoders", ""))
    notes = _unused(path, tensors, vectors, widths)
    for note in notes:
        log.warning("Kindred: %s", note)
    own = {key.removeprefix(_META): value for key, value in metadata.items() if key.startswith(_META)}
    extra = {key: value for key, value in metadata.items() if not key.startswith(_META) and key != "format"}
    return LearnedToken(text or _name(own.get("token") or name, path), own.get("class_word", ""), vectors, extra, notes)


def token(name: str, vectors: torch.Tensor, widths: Mapping[str, int], path: Path) -> LearnedToken:
    """The token `name` of a file `path` that holds more than tokens. ValueError as in `load`."""
    return LearnedToken(_name(name, path), "", _for_encoders(path, {"": vectors.detach()}, widths, ""))


def unbundle(path: Path, state: Mapping[str, torch.Tensor], widths: Mapping[str, int]) -> tuple[dict[str, torch.Tensor], list[LearnedToken]]:
    """(the weights of a LoRA file, the tokens of the embeddings that are bundled in it). ValueError as in `load`."""
    bundles = _bundles(state)
    tokens = []
    for name, tensors in bundles.items():
        vectors = _for_encoders(path, tensors, widths, "")
        tokens.append(LearnedToken(_name(name, path), "", vectors, notes=_unused(path, tensors, vectors, widths)))
    return {key: value for key, value in state.items() if not (bundles and _BUNDLE.fullmatch(key))}, tokens


def find(name: str, folders: list[str] | str | None) -> Path:
    """The file that core's `embedding:name` means, within `folders`. Raises ValueError when it is missing or lies outside of them."""
    name = name.removeprefix(FILE_PREFIX)
    if not name or "\x00" in name or Path(name).is_absolute() or ".." in Path(name.replace("\\", "/")).parts:
        raise ValueError(f"{name!r} is not the name of an embedding. Write it as it stands in the embeddings folder.")
    roots = [folders] if isinstance(folders, str) else list(folders or [])
    for root in roots:
        for place in (root, *sorted(str(p) for p in Path(root).rglob("*") if p.is_dir())):
            for candidate in (Path(place, name + ending) for ending in ("", *EXTENSIONS)):
                if os.path.isfile(candidate):  # noqa: PTH113 (Path's own raises OSError for a name that is too long)
                    if not any(candidate.resolve().is_relative_to(Path(r).resolve()) for r in roots):
                        raise ValueError(f"The embedding {name!r} is a link that leaves the embeddings folder. Put the file itself there.")
                    return candidate
    raise ValueError(f"There is no embedding {name!r} in {', '.join(map(repr, roots)) or 'any folder: this CLIP has none'}.")


def _read(path: Path) -> tuple[object, dict[str, str]]:
    """What the file holds and its metadata; for safetensors only the tensors that can belong to an embedding."""
    if pickled.is_safetensors(path):
        from safetensors import SafetensorError, safe_open

        safefile.check_header(path)
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                keys = list(file.keys())
                bundled = [key for key in keys if key.startswith("bundle_emb.")]
                if not bundled and len(keys) > 64:
                    raise ValueError(f"{str(path)!r} holds {len(keys)} tensors and no embedding; it looks like a model or a LoRA.")
                return {key: file.get_tensor(key) for key in bundled or keys}, dict(file.metadata() or {})
        except (SafetensorError, OSError, RuntimeError) as error:
            raise ValueError(f"{str(path)!r} is not a readable safetensors file ({error}). Download or export it again.") from error
    with _parameter_dicts():
        return pickled.read(path, MAX_PICKLE, "an embedding"), {}


def _layout(path: Path, content: object, text: str | None) -> tuple[str, dict[str, torch.Tensor]]:
    """(token name or "", tensors by encoder key, or by "" where the layout does not say the encoder)."""
    if isinstance(content, Mapping) and "string_to_param" in content:  # A1111, and Textual Inversion's authors
        held = content["string_to_param"]
        inner = _tensors(held.tensors() if isinstance(held, _ParameterDict) else held) if isinstance(held, (Mapping, _ParameterDict)) else {}
        name = _one_of(path, inner, text) if inner else _refuse(path, content)
        return (str(content.get("name") or name), {"": inner[name]})
    if isinstance(content, list):  # one mapping for each encoder
        parts = [value for entry in content if isinstance(entry, Mapping) for value in _tensors(entry).values()]
        return ("", {f"#{i}": value for i, value in enumerate(parts)}) if parts else _refuse(path, content)
    tensors = _tensors(content) if isinstance(content, Mapping) else {}
    bundles = _bundles(tensors)
    if bundles:
        name = _one_of(path, bundles, text)
        return name, bundles[name]
    if len(tensors) == 1:
        name, value = next(iter(tensors.items()))
        return ("", {_ENCODER_NAMES.get(name, name): value}) if _is_encoder(name) else (name, {"": value})
    if tensors and all(_is_encoder(key) for key in tensors):
        return "", {_ENCODER_NAMES.get(key, key): value for key, value in tensors.items()}
    return _refuse(path, content)


def _one_of(path: Path, named: Mapping[str, object], text: str | None) -> str:
    """The name in `named` that `text` means. ValueError where there are several and it means none."""
    if len(named) > 1 and text not in named:
        raise ValueError(f"{str(path)!r} bundles the embeddings {', '.join(map(repr, sorted(named)))}; say which one is meant.")
    return text if text is not None and text in named else next(iter(named))


def _bundles(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Name -> encoder key ("" where the layout does not say it) -> vectors, of the embeddings bundled in a LoRA."""
    bundles: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if match := _BUNDLE.fullmatch(key):
            bundles.setdefault(match["name"], {})["" if "*" in match["part"] else _ENCODER_NAMES.get(match["part"], match["part"])] = value
    return bundles


def _unused(path: Path, tensors: Mapping[str, torch.Tensor], vectors: Mapping[str, torch.Tensor], widths: Mapping[str, int]) -> tuple[str, ...]:
    """A sentence where some of the file's vectors found no encoder."""
    count = len(tensors) - len(vectors)
    if count <= 0:
        return ()
    left = [key for key in tensors if key not in vectors and _is_encoder(key)] or [f"{count} groups"]
    return (f"The vectors for {', '.join(left)} are not used, because this CLIP has {', '.join(widths)} only: {path.name!r}.",)


def _for_encoders(path: Path, tensors: dict[str, torch.Tensor], widths: Mapping[str, int], written_for: str) -> dict[str, torch.Tensor]:
    """Each tensor at the encoder it belongs to: by its key, by what the metadata says, else by its width."""
    vectors: dict[str, torch.Tensor] = {}
    for key, value in tensors.items():
        value = value.reshape(1, -1) if value.ndim == 1 else value.reshape(-1, value.shape[-1]) if value.ndim == 3 else value
        _check_vectors(value, repr(str(path)))
        named = key if key in widths else written_for if not key and written_for in widths else ""
        fits = [named] if named else [] if _is_encoder(key) else [k for k, w in widths.items() if w == value.shape[-1] and k not in vectors]
        if named and widths[named] != value.shape[-1]:
            raise ValueError(
                f"{str(path)!r} has vectors of width {value.shape[-1]} for {named}; this CLIP expects {widths[named]}. It was made for another model family."
            )
        if fits:
            vectors[fits[0]] = value.to(torch.float32).clone()
    if not vectors:
        found = ", ".join(sorted({f"{k.strip('#0123456789') or 'one'} of width {v.shape[-1]}" for k, v in tensors.items()}))
        expected = ", ".join(f"{key} {width}" for key, width in widths.items())
        raise ValueError(f"{str(path)!r} holds vectors for {found}; this CLIP has {expected}. It was made for another model family.")
    return vectors


def _check_vectors(value: torch.Tensor, where: str) -> None:
    if not value.is_floating_point() or value.is_sparse or value.ndim != 2 or 0 in value.shape:
        raise ValueError(f"The embedding in {where} has shape {list(value.shape)} and type {value.dtype}; expected floating point [count, width].")
    if not torch.isfinite(value).all():
        raise ValueError(f"The embedding in {where} contains NaN or infinity: its training went wrong. Use an earlier save.")


def _tensors(mapping: Mapping) -> dict[str, torch.Tensor]:
    return {str(key): value.detach() for key, value in mapping.items() if torch.is_tensor(value) and value.numel() <= MAX_NUMBERS}


def _is_encoder(key: str) -> bool:
    """Does the key name a text encoder? `clip_l_out` is what OneTrainer adds behind one: no CLIP of the host has a place for it."""
    return key in _ENCODER_NAMES or re.fullmatch(r"(?:clip_[a-z]|[a-z0-9]*t5[a-z0-9]*|llama|gemma\w*|qwen\w*)(?:_out)?", key) is not None


def _name(found: str, path: Path) -> str:
    stem = re.sub(r"[^\w.-]+", "-", path.stem).strip("-")[:60] or "v1"
    with contextlib.suppress(ValueError):
        if found not in _NAMELESS:
            return check_token_text(found)
    return check_token_text(f"<{stem}>")


def _refuse(path: Path, content: object):
    keys = ", ".join(map(repr, list(content)[:4])) if isinstance(content, Mapping) else type(content).__name__
    raise ValueError(f"{str(path)!r} holds no embedding that ComfyUI, diffusers, A1111 or kohya writes (found {keys or 'nothing'}).")
