"""A small judge for a world whose truth is known: it reads attributes off a picture and tells individuals apart.

It stands where CLIP and DINO stand in the papers: ``attributes`` answers whether what the prompt asked for is there (CLIP-T's question),
``identity`` whether it is this very subject (CLIP-I's and DINO's). It is trained on renders only, never on what a model drew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

STORED = Path(__file__).with_name("judge.safetensors")  # what `train_judge.py` has learned
SIDE = 64
WIDTH = 96


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.one = nn.Conv2d(n_in, n_out, 3, stride, 1)
        self.norm1 = nn.GroupNorm(8, n_out)
        self.two = nn.Conv2d(n_out, n_out, 3, 1, 1)
        self.norm2 = nn.GroupNorm(8, n_out)
        self.skip = nn.Conv2d(n_in, n_out, 1, stride) if stride > 1 or n_in != n_out else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.silu(self.norm1(self.one(x)))
        return F.silu(self.norm2(self.two(y)) + self.skip(x))


class Judge(nn.Module):
    """``values`` maps an attribute's name to its possible words; pictures are float [B, 3, H, W] in [0, 1] and are brought to 64 px."""

    def __init__(self, values: Mapping[str, Sequence[str]]):
        super().__init__()
        self.values = {name: tuple(words) for name, words in values.items()}
        self.trunk = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.SiLU(), _Block(32, 64, 2), _Block(64, 128, 2), _Block(128, 128, 1), _Block(128, 128, 2))
        self.heads = nn.ModuleDict({name: nn.Linear(128 * 16, len(words)) for name, words in self.values.items()})
        self.project = nn.Sequential(nn.Linear(128 * 16, 256), nn.SiLU(), nn.Linear(256, WIDTH))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 2048]: what both kinds of heads read."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: found shape {tuple(images.shape)}, expected [batch, 3, height, width] with values in [0, 1].")
        if images.shape[-2:] != (SIDE, SIDE):
            images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        return self.trunk(images * 2 - 1).flatten(1)

    def forward(self, images: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Logits per attribute [B, words] and unit identity vectors [B, 96]."""
        x = self.features(images)
        return {name: head(x) for name, head in self.heads.items()}, F.normalize(self.project(x), dim=-1)

    @torch.inference_mode()
    def attributes(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Probabilities per attribute [B, words], each picture and its mirror image averaged."""
        one, two = self(images)[0], self(images.flip(-1))[0]
        return {name: (one[name].softmax(-1) + two[name].softmax(-1)) / 2 for name in one}

    @torch.inference_mode()
    def identity(self, images: torch.Tensor) -> torch.Tensor:
        """Unit vectors [B, 96]; the cosine of two says how surely they are one individual."""
        return self(images)[1]

    def save(self, path: Path) -> None:
        """Half-precision safetensors with the attribute words in the metadata."""
        from safetensors.torch import save_file

        state = {name: value.half().contiguous() for name, value in self.state_dict().items()}
        save_file(state, path, {"values": json.dumps(self.values), "format": "kindred judge 1"})
        Path(path).chmod(0o644)  # safetensors writes 0600

    @classmethod
    def load(cls, path: Path) -> Judge:
        """Raises ValueError if the file is not a judge."""
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            state, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        if "values" not in metadata:
            raise ValueError(f"{str(path)!r} is not a judge: its metadata has no 'values', only {sorted(metadata)}.")
        judge = cls(json.loads(metadata["values"]))
        judge.load_state_dict({name: value.float() for name, value in state.items()})
        return judge.eval()

    def asked(self, prompt: str) -> dict[str, str]:
        """The attribute words that a prompt contains: {"class": "dog", "accessory": "hat"}. What it does not mention is not asked for."""
        words = prompt.lower().replace(",", " ").split()
        return {name: word for name, options in self.values.items() for word in options if word in words}

    def right(self, images: torch.Tensor, wanted: Sequence[Mapping[str, str]]) -> list[dict[str, bool]]:
        """For each picture, which of the wanted attributes it shows.

        Raises ValueError when pictures and wishes differ in number, or a word is outside the judge's world.
        """
        if len(wanted) != len(images):
            raise ValueError(f"wanted: found {len(wanted)} entries for {len(images)} images, expected one for each.")
        for name, word in {pair for wish in wanted for pair in wish.items()}:
            if word not in self.values.get(name, ()):
                raise ValueError(
                    f"wanted: {name} {word!r} is outside the judge's world; it knows {', '.join(self.values.get(name, ())) or 'no such attribute'}."
                )
        seen = {name: p.argmax(-1).tolist() for name, p in self.attributes(images).items()}
        return [{name: self.values[name][seen[name][i]] == word for name, word in wish.items()} for i, wish in enumerate(wanted)]


def sharpness(images: torch.Tensor) -> torch.Tensor:
    """Mean absolute gradient of each picture [B]: compare a model's with the renders' of the same prompts (1 = as sharp)."""
    dx, dy = (images[..., :, 1:] - images[..., :, :-1]).abs(), (images[..., 1:, :] - images[..., :-1, :]).abs()
    return dx.mean((1, 2, 3)) + dy.mean((1, 2, 3))
