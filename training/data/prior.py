"""Prior images: ordinary pictures of a class, drawn once by the base model and cached on disk by their inputs.

Prior preservation (DreamBooth, Custom Diffusion) trains on them beside the subject's photos, so that the class does not change.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from ...formats import picture_file
from ...host import drawing
from ...host.fingerprint import content_hash
from .order import random_state


@dataclass(frozen=True)
class PriorSettings:
    """Prompt and sampling settings. `batch_size` pictures are drawn together, which changes their last bits."""

    class_prompt: str
    width: int = 512
    height: int = 512
    steps: int = 30
    cfg: float = 6.0
    seed: int = 0
    sampler_name: str = "euler"
    scheduler: str = "normal"
    batch_size: int = 4

    def __post_init__(self):
        if not self.class_prompt.strip():
            raise ValueError("class_prompt is empty. Say what the pictures show, as the Concept's class prompt does: for example 'a photo of a dog'.")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("width", "height") and (value < 64 or value % 8):
                raise ValueError(f"{field.name} is {value}; expected a multiple of 8, at least 64 (512 for SD 1.5).")
            if field.name in ("steps", "batch_size") and value < 1:
                raise ValueError(f"{field.name} is {value}; at least 1 is expected.")
        if not math.isfinite(self.cfg):
            raise ValueError(f"cfg is {self.cfg}; expected a number.")


def cache_name(model, clip, vae, settings: PriorSettings) -> str:
    """The folder name for pictures with exactly these inputs. The number of pictures is not part of it, so more can be added."""
    tokens = [clip.tokenize(prompt) for prompt in (settings.class_prompt, "")]  # with the vectors of embeddings and tokens that it names
    return content_hash(model, clip.patcher, clip.layer_idx, tokens, vae.patcher, asdict(settings))[:32]


def prior_images(model, clip, vae, settings: PriorSettings, count: int, folder: Path, node_id: str | None = None) -> list[torch.Tensor]:
    """`count` pictures, tensors [1, height, width, 3] in 0..1, from `folder`. Missing ones are drawn and written first.

    The result is what the files hold, so it is the same whether drawn now or before. Pictures are drawn in whole batches, each with a
    seed of its own: an interrupted run goes on where it ended, and a larger `count` begins with the same pictures. Damaged files are
    drawn again. ValueError for a count below 1; OSError, in a sentence, when the folder cannot be written to.
    """
    if count < 1:
        raise ValueError(f"count is {count}; at least 1 is expected (the papers use 200).")
    size = settings.batch_size
    paths = [folder / f"{index:05}.png" for index in range(math.ceil(count / size) * size)]
    kept = {path: picture for path in paths if (picture := picture_file.read(path)) is not None and picture.shape[:2] == (settings.height, settings.width)}
    batches = [start for start in range(0, len(paths), size) if not kept.keys() >= set(paths[start : start + size])]
    if batches:
        _writable(folder)
        progress = drawing.DrawingProgress(node_id, count, len(batches), settings.steps)
        positive, negative = (drawing.conditioning(clip, prompt) for prompt in (settings.class_prompt, ""))
        how = {name: getattr(settings, name) for name in ("steps", "cfg", "sampler_name", "scheduler")}
        for start in batches:
            seed = int(random_state(settings.seed, start).integers(2**63))
            pictures = drawing.draw(model, vae, positive, negative, settings.width, settings.height, size, seed, how, progress.step)
            for path, picture in zip(paths[start : start + size], pictures, strict=True):
                if path not in kept:
                    _write(picture, path, settings)
                    written = picture_file.read(path)
                    assert written is not None, f"{path} was lost while it was written"
                    kept[path] = written
            progress.batch(min(start + size, count))
    return [torch.from_numpy(kept[path])[None] for path in paths[:count]]


def _write(picture: torch.Tensor, path: Path, settings: PriorSettings) -> None:
    parameters = (
        f"{settings.class_prompt}\nSteps: {settings.steps}, Sampler: {settings.sampler_name}, Schedule type: {settings.scheduler}, "
        f"CFG scale: {settings.cfg}, Size: {settings.width}x{settings.height}"
    )
    try:
        picture_file.write(picture.numpy(), path, parameters)
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def _writable(folder: Path) -> None:
    """Raise OSError before anything is drawn, not after the first batch."""
    probe = folder / f".{secrets.token_hex(8)}.part"  # a name of this process: another one may be probing the same folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0" * 4096)
        probe.unlink()
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> OSError:
    return OSError(
        f"The prior images cannot be written to {str(folder)!r}: {error.strerror or error}. Free some space or make the folder writable and queue "
        "again: pictures that are there already are kept. Or connect your own pictures of the class to prior_images."
    )
