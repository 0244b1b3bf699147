"""Stage 3: the UNet, trained on cached latents and cached text features with Stable Diffusion 1.5's noise schedule."""

from __future__ import annotations

import functools
import random
from pathlib import Path

import torch

from . import autoencoder, captions, loop, parts, text
from .pictures import Pictures
from .settings import Settings


def alphas_cumprod() -> torch.Tensor:
    """The "scaled linear" schedule of SD 1.5 [1000]."""
    return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0).float()


class _Words:
    """Text features by token ids, each computed once; bfloat16 [77, 768]."""

    def __init__(self, encoder: torch.nn.Module, device: torch.device):
        self.encoder, self.device, self.known = encoder, device, {}

    def __call__(self, prompts: list[tuple[int, ...]]) -> torch.Tensor:
        new = [p for p in dict.fromkeys(prompts) if p not in self.known]
        if new:
            for prompt, x in zip(new, text.features(self.encoder, new, self.device), strict=True):
                self.known[prompt] = x.bfloat16()
        return torch.stack([self.known[p] for p in prompts]).float()


def _steps(count: int, g: torch.Generator) -> torch.Tensor:
    """Time steps [B]: 62% around 500, where a picture decides what it shows; the rest uniform."""
    middle = (torch.randn(count, generator=g) * 180 + 500).clamp(0, 999).long()
    return torch.where(torch.rand(count, generator=g) < 0.62, middle, torch.randint(1000, (count,), generator=g))


def _importance(size: int) -> torch.Tensor:
    """Where the creature stands counts more: a smooth bump over the frame, mean 1, [1, 1, s, s]."""
    line = torch.linspace(-1, 1, size)
    bump = 0.6 + torch.exp(-(line[None] ** 2 / 0.5 + (line[:, None] - 0.1) ** 2 / 0.8))
    return (bump / bump.mean())[None, None]


def latents(settings: Settings, vae: torch.nn.Module, pictures: Pictures, work: Path, device: torch.device) -> dict[str, torch.Tensor]:
    """Latents of unit size and the scale that made them so, encoded once into ``work``."""
    path = work / "unet.latents.pt"
    if not path.is_file():
        z = autoencoder.encode(vae, pictures, device)
        loop.save({"latents": z / z.std(), "std": z.std()}, path)
    return torch.load(path, weights_only=True)


@torch.no_grad()
def rest(model: torch.nn.Module, blocks: tuple[str, ...]) -> None:
    """Leaves blocks out: with zero weights a residual block is exactly its skip connection, a transformer exactly its input.

    The layout still holds them, and `wake` lets a longer training use them.
    """
    for name in blocks:
        block = model.get_submodule(name).requires_grad_(False)
        kept = getattr(block, "skip_connection", torch.nn.Identity()).requires_grad_(True)
        for p in block.parameters():
            if not p.requires_grad:
                p.zero_()
        block.forward = functools.partial(_only, kept)


def wake(model: torch.nn.Module, blocks: tuple[str, ...]) -> None:
    """Gives the blocks that rest new inner weights and leaves their last layer zero: at first the network computes what it did before."""
    for name in blocks:
        block = model.get_submodule(name).requires_grad_(True)
        block.__dict__.pop("forward", None)
        kept = getattr(block, "skip_connection", None)
        for layer in block.modules():
            if layer is not kept:
                parts.initialise(layer)
        parts.quiet(block)


def _only(kept: torch.nn.Module, x: torch.Tensor, *_) -> torch.Tensor:
    return kept(x)


def train(
    settings: Settings, pictures: Pictures, vae: torch.nn.Module, encoder: torch.nn.Module, work: Path, log: loop.Log, device: torch.device
) -> torch.nn.Module:
    """Both stages: the network without the resting blocks, then, from its result, the whole one at lower rates."""
    torch.manual_seed(settings.seed + 2)
    z = latents(settings, vae, pictures, work, device)["latents"]
    log.write(stage="unet", latents=len(z), channel_mean=[round(v, 3) for v in z.mean((0, 2, 3)).tolist()])
    model = parts.unet()
    rest(model, settings.unet_rest)
    model = model.to(device).to(memory_format=torch.channels_last)
    words = _Words(encoder, device)
    common = {"work": work, "log": log, "ema": settings.unet_ema, "every": 25}
    loss = _Loss("unet", model, z, pictures, words, settings, device)
    loop.train("unet", model, loss, settings.unet_steps, settings.unet_lr, schedule=loop.flat_then_linear, muon=settings.unet_muon, **common)
    if settings.unet_more_steps:
        torch.manual_seed(settings.seed + 4)
        wake(model, settings.unet_rest)
        schedule = functools.partial(loop.flat_then_linear, flat=settings.unet_more_flat)
        loss = _Loss("unet.more", model, z, pictures, words, settings, device)
        loop.train("unet.more", model, loss, settings.unet_more_steps, settings.unet_more_lr, schedule=schedule, muon=settings.unet_more_muon, **common)
    return model.eval().requires_grad_(False)


class _Loss:
    """The loss of one stage's step: its pictures, captions, times and noise depend on (seed, stage, step) alone."""

    def __init__(self, stage: str, model: torch.nn.Module, latents: torch.Tensor, pictures: Pictures, words: _Words, settings: Settings, device: torch.device):
        self.stage, self.model, self.latents, self.pictures, self.words, self.settings, self.device = stage, model, latents, pictures, words, settings, device
        self.alphas, self.importance = alphas_cumprod(), _importance(latents.shape[-1]).to(device)

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        settings, z, a, device = self.settings, self.latents, self.alphas, self.device
        g, rng = loop.generator(settings.seed, self.stage, step), random.Random(f"{settings.seed}|{self.stage}|{step}")
        index = torch.randint(len(z), (settings.unet_batch,), generator=g)
        said = [captions.say(self.pictures.labels[i], rng)[0] for i in index.tolist()]
        said = [captions.ids("") if rng.random() < settings.empty_captions else s for s in said]
        t = _steps(len(index), g)
        noise = torch.randn(z[index].shape, generator=g)
        signal, sigma = a[t].sqrt()[:, None, None, None], (1 - a[t]).sqrt()[:, None, None, None]
        x = (signal * z[index] + sigma * noise).to(device).contiguous(memory_format=torch.channels_last)
        with loop.autocast(device):
            predicted = self.model(x, t.to(device), context=self.words(said))
        snr = a[t] / (1 - a[t])
        weight = (settings.min_snr / snr).clamp(max=1.0).to(device)  # min-SNR for an epsilon loss (Hang et al. 2023)
        error = ((predicted.float() - noise.to(device)) ** 2 * self.importance).mean((1, 2, 3))
        return {"loss": (weight * error).mean(), "eps_mse": error.mean()}
