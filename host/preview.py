"""A picture drawn in the middle of a training, by the host's own sampling, without a trace in what goes on after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management
import comfy.sample
import torch


@contextmanager
def sampling_mode() -> Iterator[None]:
    """Inside a training: the host as it is when it samples (inference mode, its fast kernels), and the random state as it was, afterwards."""
    before, random = comfy.model_management.in_training, torch.get_rng_state()
    with torch.inference_mode():
        comfy.model_management.in_training = False
        try:
            yield
        finally:
            comfy.model_management.in_training = before
            torch.set_rng_state(random)


def conditioning(clip, prompt: str):
    """The CONDITIONING that core's CLIP Text Encode gives."""
    return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))


def draw(model, positive, negative, vae, side: int, seed: int, steps: int, cfg: float, sampler: str, scheduler: str) -> torch.Tensor:
    """One picture [side, side, 3] in 0..1, as KSampler and VAE Decode give it; side in pixels. Shows no progress of its own."""
    form = model.get_model_object("latent_format")
    cell = form.spacial_downscale_ratio
    empty = torch.zeros(1, form.latent_channels, side // cell, side // cell, device=comfy.model_management.intermediate_device())
    empty = comfy.sample.fix_empty_latent_channels(model, empty)
    noise = comfy.sample.prepare_noise(empty, seed)
    latents = comfy.sample.sample(model, noise, steps, cfg, sampler, scheduler, positive, negative, empty, disable_pbar=True, seed=seed)
    picture = vae.decode(latents)
    return picture.reshape(-1, *picture.shape[-3:])[0].float().cpu()


def load_again(patcher) -> None:
    """Bring `patcher`'s own weights back into the module that it shares with the clone that has just drawn."""
    comfy.model_management.load_models_gpu([patcher])
