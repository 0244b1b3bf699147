"""Pictures from a prompt, as core's CLIP Text Encode, Empty Latent Image, KSampler and VAE Decode would draw them."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.sample
import comfy.utils
import latent_preview
import torch

from . import page
from .types import Clip, Conditioning, Model, Vae

Step = Callable[[int, bytes | None], None]  # steps done, an encoded preview


def conditioning(clip: Clip, prompt: str) -> Conditioning:
    """The host's CONDITIONING of `prompt`."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def draw(
    model: Model,
    vae: Vae,
    positive: Conditioning,
    negative: Conditioning,
    width: int,
    height: int,
    count: int,
    seed: int,
    sampling: dict,
    on_step: Step | None = None,
) -> torch.Tensor:
    """`count` pictures [count, height, width, 3] in 0..1 on the CPU, drawn together. The host's interrupt ends it within one step.

    sampling  steps, cfg, sampler_name, scheduler, as core's KSampler has them
    """
    import nodes  # the host's top-level module

    comfy.model_management.throw_exception_if_processing_interrupted()
    latent = nodes.EmptyLatentImage().generate(width, height, count)[0]
    ratios = [latent[name] for name in ("downscale_ratio_spacial",) if name in latent]
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"], *ratios)
    previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)

    def callback(step, x0, x, total):
        if on_step:
            on_step(step + 1, previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None)

    samples = comfy.sample.sample(
        model,
        comfy.sample.prepare_noise(samples, seed),
        sampling["steps"],
        sampling["cfg"],
        sampling["sampler_name"],
        sampling["scheduler"],
        positive,
        negative,
        samples,
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )
    pictures = vae.decode(samples)
    return pictures.reshape(-1, *pictures.shape[-3:])[..., :3].float().cpu().clamp(0, 1)  # a VAE for video gives one frame each


class DrawingProgress:
    """One progress bar over all pictures of a node, with the host's previews, and a line that counts them."""

    def __init__(self, node_id: str | None, pictures: int, batches: int, steps: int):
        self.node_id, self.pictures, self.steps = node_id, pictures, steps
        self.bar = comfy.utils.ProgressBar(max(1, batches * steps), node_id)
        self.before = 0

    def step(self, done: int, preview: bytes | None) -> None:
        self.bar.update_absolute(min(self.before + done, self.bar.total), preview=preview)

    def batch(self, pictures: int) -> None:
        """One batch is done, and `pictures` are there by now."""
        self.before += self.steps
        client = page.client()
        if self.node_id is not None and client is not None:
            page.server().send_progress_text(f"picture {pictures}/{self.pictures}", self.node_id, client)
