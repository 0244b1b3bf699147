"""Which embedding files belong to a LoRA file: the manifest in the LoRA's metadata, and the owner in the embedding's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from . import text_file
from .token_file import OWNER

KEY = "kindred.tokens"  # in the LoRA's metadata; JSON: a list of entries, in the order of the concepts


@dataclass(frozen=True)
class Entry:
    """One token. `vectors` are the digests of its vectors, one for each text encoder; empty in files that were written before there were any."""

    token: str
    class_word: str
    file: str
    vectors: tuple[str, ...] = ()

    @property
    def part(self) -> str:
        """The name of the whole file before it gets its own: made from the content, so that the LoRA alone says where to look for it."""
        return f".kindred-token-{hashlib.sha256(json.dumps([self.file, *self.vectors]).encode()).hexdigest()[:24]}.part"

    def fits(self, vectors: Mapping[str, torch.Tensor]) -> bool:
        """Are these the vectors (of some or all encoders) that the concept was saved with? True where the manifest has no digests."""
        return not self.vectors or set(digests(vectors)) <= set(self.vectors)


def digests(vectors: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """A digest of each encoder's vectors [count, width] as they are stored, in float32."""
    values = [value.detach().to("cpu", torch.float32).contiguous() for value in vectors.values()]
    return tuple(hashlib.sha256(str(tuple(value.shape)).encode() + value.numpy().tobytes()).hexdigest()[:24] for value in values)


def dump(entries: list[Entry]) -> str:
    return json.dumps([asdict(entry) for entry in entries], ensure_ascii=False)


def parse(metadata: Mapping[str, str]) -> list[Entry]:
    """The entries in a LoRA's metadata, none where it is not a concept's. ValueError with the reason when they are damaged."""
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
    """The metadata of a safetensors file, of which nothing else is read; none where it is not one."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return {}


def owner(path: Path) -> str | None:
    """The concept that the embedding file `path` was saved with; None for a file of another tool, or a link."""
    return None if path.is_symlink() else metadata_of(path).get(OWNER)
