"""The manifest in a LoRA's metadata lists its embedding files, and an embedding's metadata names the concept that owns it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from . import safefile, text_file
from .token_file import OWNER

KEY = "kindred.tokens"  # in the LoRA's metadata; JSON: a list of entries, in the order of the concepts


@dataclass(frozen=True)
class Entry:
    """One token. `vectors` are the digests of its vectors, one for each text encoder; empty in older files."""

    token: str
    class_word: str
    file: str
    vectors: tuple[str, ...] = ()

    @property
    def part(self) -> str:
        """The temporary name of the embedding file. It is derived from the content, so the LoRA alone determines it."""
        return f".kindred-token-{hashlib.sha256(json.dumps([self.file, *self.vectors]).encode()).hexdigest()[:24]}.part"

    def fits(self, vectors: Mapping[str, torch.Tensor]) -> bool:
        """Are these the vectors (of some or all encoders) that the concept was saved with? True if the manifest has no digests."""
        return not self.vectors or set(digests(vectors)) <= set(self.vectors)


def digests(vectors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """A digest of each encoder's vectors [count, width] as stored, in float32."""
    values = [value.detach().to("cpu", torch.float32).contiguous() for value in vectors.values()]
    return tuple(hashlib.sha256(str(tuple(value.shape)).encode() + value.numpy().tobytes()).hexdigest()[:24] for value in values)


def dump(entries: list[Entry]) -> str:
    return json.dumps([asdict(entry) for entry in entries], ensure_ascii=False)


def parse(metadata: Mapping[str, str]) -> list[Entry]:
    """The entries in a LoRA's metadata; none if it is not a concept. ValueError with the reason if they are damaged."""
    try:
        entries = text_file.parse_json(metadata.get(KEY, "[]"))
        if not isinstance(entries, list):
            raise ValueError("not a list")
        return [Entry(str(entry["token"]), str(entry["class_word"]), str(entry["file"]), tuple(map(str, entry.get("vectors", ())))) for entry in entries]
    except KeyError as error:
        raise ValueError(f"an entry has no {error}") from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def metadata_of(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; none if it cannot be read as one."""
    try:
        return safefile.metadata(path)
    except ValueError:
        return {}


def owner_of(path: Path) -> str | None:
    """The concept that the embedding file `path` belongs to; None for a link or a file of another tool."""
    return None if path.is_symlink() else metadata_of(path).get(OWNER)
