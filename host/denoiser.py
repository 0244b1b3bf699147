"""Trainable denoising networks: supported families, noise schedules, predictions and their targets."""

from __future__ import annotations

import copy
import math

import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from . import families, text_rows
from .checkpointing import gradient_checkpointing, make_differentiable
from .training import ordinary, training_copy

Prompt = tuple  # (conditioning [1, positions, width], pooled [1, width] or None[, dict with the conditioning's other entries])

_PREDICTIONS = {
    comfy.model_sampling.EPS.calculate_denoised: "eps",
    comfy.model_sampling.V_PREDICTION.calculate_denoised: "v",
    comfy.model_sampling.CONST.calculate_denoised: "flow",
}


def supported_family(patcher) -> str:
    """The name of the model's family. Raises ValueError if Train Concept cannot train the model."""
    model, sampling = patcher.model, patcher.get_model_object("model_sampling")
    row = families.trained_family(patcher)
    if row is None or _prediction(sampling) is None:
        supported = ", ".join(row.name for row in families.FAMILIES if row.trained)
        raise ValueError(f"Train Concept cannot train this model ({type(model).__name__}, prediction {model.model_type.name}). Supported: {supported}.")
    if model.concat_keys or _takes_more_channels(model):
        raise ValueError(
            "This is an inpainting or editing model: it takes an image in addition to the noise, which training does not provide. "
            "Train on the standard model of the same family; the result works on both."
        )
    return row.name


def latent_scale(patcher) -> int:
    """Pixels per latent cell along one side (8 for SD)."""
    return patcher.get_model_object("latent_format").spacial_downscale_ratio


def latent_dimensions(patcher) -> int:
    """Dimensions of the model's latents besides batch and channels: 2 for images, 3 for videos (frames first)."""
    return patcher.get_model_object("latent_format").latent_dimensions


def prediction(patcher) -> str | None:
    """What the model's network predicts: "eps", "v" or "flow"; None if it is something else."""
    return _prediction(patcher.get_model_object("model_sampling"))


class TrainableDenoiser:
    """A training copy of a MODEL's denoising network, called with the host's own noise schedule and conditions.

    network          the frozen copy; adapters are attached to it
    prediction       what the network predicts: "eps", "v" or "flow"
    device, dtype    of the computation
    latent_channels  channels of the latents
    latent_scale     pixels per latent cell along one side
    latent_dimensions  besides batch and channels: 2 for images, 3 for videos
    middle_sigma     noise level in the middle of the schedule
    """

    def __init__(self, patcher, batch_shape: tuple[int, ...] | None = None, checkpointing: bool = False):
        """Load the model and copy it.

        batch_shape    [n, c, h, w], the latents of one step: the host's memory manager keeps `training_memory` free for them
        checkpointing  the blocks recompute their activations in the backward pass (`gradient_checkpointing`)
        """
        supported_family(patcher)
        patcher = ordinary(patcher)
        needed = training_memory(patcher, batch_shape, checkpointing) if batch_shape else 0
        comfy.model_management.load_models_gpu([patcher], memory_required=needed)
        self.sampling = patcher.get_model_object("model_sampling")
        predicted = _prediction(self.sampling)
        assert predicted is not None  # supported_family refuses the others
        self.prediction = predicted
        self.network = training_copy(patcher.model.diffusion_model)
        make_differentiable(self.network)
        if checkpointing:
            gradient_checkpointing(self.network)
        self.model = _model_around(patcher.model, self.network, self.sampling)
        self.device = patcher.load_device
        self.dtype = patcher.model.get_dtype_inference()
        self.latent_channels = patcher.model.latent_format.latent_channels
        self.latent_scale = patcher.model.latent_format.spacial_downscale_ratio
        self.latent_dimensions = patcher.model.latent_format.latent_dimensions
        self.middle_sigma = self.sigma_at(0.5)

    def sigma_at(self, part: float) -> float:
        """The noise level at a part of the schedule, from 0 (noise alone) to 1 (no noise)."""
        return float(self.sampling.percent_to_sigma(part))

    def latents(self, encoded: torch.Tensor) -> torch.Tensor:
        """The VAE's latents [n, c, h, w], or [n, c, 1, h, w] for videos, scaled and shifted to the range that the network works in."""
        expected = self.model.latent_format.latent_dimensions + 2
        if encoded.ndim != expected:  # the host would silently broadcast its scale over the wrong dimensions
            raise ValueError(f"The VAE's latents have {encoded.ndim} dimensions, but this model takes {expected}. Connect the VAE that belongs to the model.")
        return self.model.process_latent_in(encoded)

    def draw_sigmas(self, count: int, generator: torch.Generator, distribution: str = "auto") -> torch.Tensor:
        """Random noise levels [count], float32 on the CPU. Raises ValueError for an unknown `distribution`.

        eps, v       "uniform" over the steps of the discrete schedule (DDPM and the three papers; = "auto"), or "logit-normal" over them
        flow         "logit-normal": t = sigmoid(N(0, 1)) (SD 3, Esser et al. 2024, section 3.1; = "auto"), or t "uniform" in (0, 1];
                     both pass through the model's own time shift
        """
        if distribution not in ("auto", "uniform", "logit-normal"):
            raise ValueError(f"The noise distribution is {distribution!r}; expected 'auto', 'uniform' or 'logit-normal'.")
        flow = self.prediction == "flow"
        normal = distribution == "logit-normal" or (distribution == "auto" and flow)
        if flow:
            t = torch.randn(count, generator=generator).sigmoid() if normal else 1 - torch.rand(count, generator=generator)
            return self.sampling.sigma(t * getattr(self.sampling, "multiplier", 1.0)).float().cpu()
        sigmas = self.sampling.sigmas.float().cpu()
        if normal:
            return sigmas[(torch.randn(count, generator=generator).sigmoid() * len(sigmas)).long().clamp(max=len(sigmas) - 1)]
        return sigmas[torch.randint(len(sigmas), (count,), generator=generator)]

    def snr(self, sigma: torch.Tensor) -> torch.Tensor:
        """The signal-to-noise ratio [n] of the network's input at the noise levels `sigma` [n]: alpha^2 / sigma^2."""
        return ((1 - sigma) / sigma) ** 2 if self.prediction == "flow" else sigma**-2.0

    def predict(self, latents, noise, sigma, prompts: list[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """The network's prediction and its target, both [n, c, h, w] float32.

        latents, noise  [n, c, h, w], the latents as `latents` returns them
        sigma           [n], as `draw_sigmas` returns them
        prompts         one `Prompt` per row; the numbers of positions may differ
        The target is the noise (eps prediction), v = alpha * noise - sigma * x0 of the variance-preserving process, or noise - x0 (flow).
        """
        sigma = sigma.to(self.device, torch.float32)
        output = self.output(self.noisy(latents, noise, sigma), sigma, prompts)
        level = sigma.view(-1, *[1] * (noise.ndim - 1))
        if self.prediction == "eps":
            return output, noise
        if self.prediction == "v":
            return output, (noise - level * latents) / (1 + level**2) ** 0.5
        return output, getattr(self.sampling, "noise_scale", 1.0) * noise - latents

    def noisy(self, latents, noise, sigma) -> torch.Tensor:
        """`latents` with `noise` at the levels `sigma` [n], before input scaling, as the host's samplers pass it on: [n, c, h, w]."""
        return self.sampling.noise_scaling(sigma.to(self.device, torch.float32), noise, latents)

    def output(self, noisy, sigma, prompts: list[Prompt]) -> torch.Tensor:
        """The network's prediction for `noisy` [n, c, h, w] at `sigma` [n]: [n, c, h, w] float32.

        Output preservation calls it twice with the same `noisy`, `sigma` and class prompts: with the adapters on, and without gradient with
        the adapters off, where the network is the base model.
        """
        sigma = sigma.to(self.device, torch.float32)
        rows = [self._conditions(prompt, noisy) for prompt in prompts]
        groups: list[list[int]] = []
        for index, row in enumerate(rows):
            matching = (group for group in groups if _can_concat(rows[group[0]], row))
            if (group := next(matching, None)) is not None:
                group.append(index)
            else:
                groups.append([index])
        outputs: dict[int, torch.Tensor] = {}
        for group in groups:  # rows whose conditions have different shapes cannot share a forward pass
            conditions = {name: first.concat([rows[other][name] for other in group[1:]]) for name, first in rows[group[0]].items()}
            options = {"optimized_attention_override": _attention, "wrappers": {"diffusion_model": {text_rows.KEY: [_marking(conditions.pop(text_rows.KEY))]}}}
            part = self.model.apply_model(noisy[group], sigma[group], transformer_options=options, **conditions)
            outputs.update(zip(group, part, strict=True))
        return torch.stack([outputs[index] for index in range(len(rows))])

    def _conditions(self, prompt: Prompt, noisy) -> dict:
        """The host's condition objects of one row, from the model's own `extra_conds` (context; pooled and size embeddings if it has them)."""
        conditioning, pooled, *rest = prompt
        scale, extras = self.latent_scale, dict(rest[0] if rest else {})
        rows = extras.pop(text_rows.KEY, None)
        entries = {"width": noisy.shape[-1] * scale, "height": noisy.shape[-2] * scale, **extras}
        entries |= {"cross_attn": conditioning.to(self.device), "device": self.device, "noise": noisy[:1], "prompt_type": "positive"}
        entries["pooled_output"] = None if pooled is None else pooled.to(self.device)  # the host passes None as well
        found = {name: condition.process_cond(batch_size=1, area=None) for name, condition in self.model.extra_conds(**entries).items()}
        return {**found, text_rows.KEY: text_rows.mask_condition(text_rows.mask({}, conditioning.shape[1]) if rows is None else rows)}


def training_memory(patcher, batch_shape: tuple[int, ...], checkpointing: bool = False) -> float:
    """Bytes to keep free on top of the weights for a step on latents of `batch_shape`, from the host's memory estimate of a forward pass.

    The activations that the backward pass needs, counted in bf16 at the real sizes for one image:

                              SD 1.5, 512 px   SDXL, 1024 px   SD 3, 1024 px   Flux, 1024 px
        GiB                        2.0             10.3            22.0            67.7
        times the estimate         3.4              5.3             5.7             9.1
        GiB, checkpointing      under 0.3           0.5             0.3             1.0         plus the activations of one block
    """
    forward = batch_shape[0] * math.prod(batch_shape[2:]) * 0.15 * patcher.model.memory_usage_factor * 2**20
    return forward * (1.0 if checkpointing else 5.5 if isinstance(patcher.model.diffusion_model, UNetModel) else 9.5)


def _marking(mask: torch.Tensor):
    """A wrapper of the network that puts the token rows of its text features onto them (`text_rows.mark`)."""

    def forward(executor, x, timesteps, context=None, *args, **kwargs):
        if torch.is_tensor(context):
            text_rows.mark(context, mask)
        return executor(x, timesteps, context, *args, **kwargs)

    return forward


def _attention(_chosen, *args, **kwargs):
    """PyTorch's attention. Replaces the host's chosen one, which may have no gradient (sage) or a slow one (sub-quadratic)."""
    return attention_pytorch(*args, **kwargs)


class _Output:
    """A noise schedule that makes the host's `apply_model` return the network's prediction instead of the denoised latents."""

    def __init__(self, sampling):
        self.calculate_input, self.timestep = sampling.calculate_input, sampling.timestep

    def calculate_denoised(self, sigma, model_output, model_input):
        return model_output


def _model_around(model, network, sampling):
    """A copy of the host's model object whose `apply_model` (dtypes, time steps, conditions) calls `network`. Only weights are shared with `model`."""
    clone = copy.copy(model)
    clone._modules = {name: module for name, module in model._modules.items() if name != "model_sampling"}
    clone._modules["diffusion_model"] = network
    clone.__dict__.update(model_sampling=_Output(sampling), current_patcher=None)
    return clone


def _prediction(sampling) -> str | None:
    return _PREDICTIONS.get(getattr(type(sampling), "calculate_denoised", None))


def _takes_more_channels(model) -> bool:
    """Does the first layer expect more channels than a latent has?"""
    channels = model.latent_format.latent_channels
    config = model.model_config.unet_config
    if config.get("image_model") in ("qwen_image", "chroma"):  # these count the channels of a 2 x 2 patch
        channels *= 4
    return config.get("in_channels", config.get("in_dim", channels)) > channels


def _can_concat(row: dict, other: dict) -> bool:
    return row.keys() == other.keys() and all(value.can_concat(other[name]) for name, value in row.items())
