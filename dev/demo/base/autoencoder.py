"""Stage 1: the autoencoder, 8x smaller latents of 4 channels in TAESD's layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from . import loop, parts
from .pictures import Pictures
from .settings import Settings


def _edges(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x[..., :, 1:] - x[..., :, :-1], x[..., 1:, :] - x[..., :-1, :]


@torch.no_grad()
def skip(model: Any, settings: Settings) -> None:
    """Leaves blocks out: with zero convolutions a block is exactly its last ReLU, so the stock layout still holds them."""
    for half, blocks in ((model.taesd_encoder, settings.vae_skip), (model.taesd_decoder, settings.vae_skip_decoder)):
        for i in blocks:
            block = half[i].requires_grad_(False)
            for p in block.parameters():
                p.zero_()
            block.forward = torch.relu


def train(settings: Settings, pictures: Pictures, work: Path, log: loop.Log, device: torch.device) -> torch.nn.Module:
    """Errors of pixels, absolute and squared, and of their gradients: the square finds the colours, the others keep outlines crisp."""
    torch.manual_seed(settings.seed)
    model = parts.autoencoder()
    skip(model, settings)
    model = model.to(device).to(memory_format=torch.channels_last)
    model.vae_scale.requires_grad_(False)
    model.vae_shift.requires_grad_(False)

    line = torch.linspace(-1, 1, settings.size, device=device)
    weight = 0.5 + 1.5 * torch.exp(-((line[None] / 0.6) ** 2) - ((line[:, None] - 0.05) / 0.8) ** 2)  # the creature counts most
    weight = weight / weight.mean()

    def loss(step: int) -> dict[str, torch.Tensor]:
        g = loop.generator(settings.seed, "vae", step)
        x = pictures.batch(torch.randint(len(pictures.pixels), (settings.vae_batch,), generator=g))
        x = x.to(device).contiguous(memory_format=torch.channels_last)
        with loop.autocast(device):
            z = model.taesd_encoder(x)
            noise = torch.randn(z.shape, generator=g).to(device) * settings.vae_noise
            y = model.taesd_decoder(z + noise)
        y, z = y.float(), z.float()
        error = (y - x).abs().mean()
        edges = sum((a - b).abs().mean() for a, b in zip(_edges(y * weight), _edges(x * weight), strict=True))
        total = ((y - x).abs() * weight).mean() + 2 * ((y - x).pow(2) * weight).mean() + settings.vae_edges * edges + 1e-3 * z.pow(2).mean()
        return {"loss": total, "l1": error, "psnr": -10 * (y - x).pow(2).mean((1, 2, 3)).log10().mean(), "latent_std": z.std()}

    loop.train("autoencoder", model, loss, settings.vae_steps, settings.vae_lr, work, log, every=100, weight_decay=0.0, muon=settings.vae_muon)
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def encode(model: Any, pictures: Pictures, device: torch.device, batch: int = 250) -> torch.Tensor:
    """Latents of all pictures, float32 [N, 4, S/8, S/8], in the autoencoder's own scale."""
    out = []
    for at in range(0, len(pictures.pixels), batch):
        x = (pictures.pixels[at : at + batch].float() / 255).to(device).contiguous(memory_format=torch.channels_last)
        with loop.autocast(device):
            out.append(model.taesd_encoder(x).float().cpu())
    return torch.cat(out)
