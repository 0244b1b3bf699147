"""A MODEL's denoising network as something that can be trained: which families, their noise schedule, what they predict and should predict."""

from __future__ import annotations

import copy
import math

import comfy.model_base
import comfy.model_management
import comfy.model_sampling
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from . import families
from .checkpointing import gradient_checkpointing, make_differentiable
from .training import ordinary, training_copy
from .types import Model

Prompt = tuple  # (conditioning [1, positions, width], pooled [1, width] or None[, the host's further entries of a conditioning])

_PREDICTIONS = {
    comfy.model_sampling.EPS.calculate_denoised: "eps",
    comfy.model_sampling.V_PREDICTION.calculate_denoised: "v",
    comfy.model_sampling.CONST.calculate_denoised: "flow",
}


def supported_family(patcher: Model) -> str:
    """The model's family, if it can be trained. ValueError that names it and the supported ones if not."""
    model, sampling = patcher.model, patcher.get_model_object("model_sampling")
    row = families.trained_family(patcher)
    if row is None or _prediction(sampling) is None:
        supported = ", ".join(row.name for row in families.FAMILIES if row.trained)
        raise ValueError(f"Train Concept cannot train this model ({type(model).__name__}, prediction {model.model_type.name}). Supported are {supported}.")
    if model.concat_keys or _takes_more_channels(model):
        raise ValueError(
            "This is an inpainting or editing model, which expects a picture beside the noise. Train on the ordinary model of the same family; the result works on both."
        )
    return row.name


def latent_scale(patcher: Model) -> int:
    """Pixels in one cell of the model's latents, each way."""
    return patcher.get_model_object("latent_format").spacial_downscale_ratio


def latent_dimensions(patcher: Model) -> int:
    """Dimensions of the model's latents beside batch and channels: 2 for pictures, 3 for videos (frames first)."""
    return patcher.get_model_object("latent_format").latent_dimensions


def prediction(patcher: Model) -> str | None:
    """What the model's network says: "eps", "v" or "flow"; None where it is none of them."""
    return _prediction(patcher.get_model_object("model_sampling"))


class TrainableDenoiser:
    """A MODEL's denoising network as a training copy, with the host's own noise schedule and conditions around it.

    network          the copy, frozen; what is trained is attached to it
    prediction       "eps", "v" or "flow": what the network says
    checkpointing    the blocks compute their activations again in the backward pass (`gradient_checkpointing`)
    device, dtype    where and in what it computes
    latent_channels, latent_scale  of the autoencoder: channels, and pixels a latent cell
    """

    def __init__(self, patcher: Model, batch_shape: tuple[int, ...] | None = None, checkpointing: bool = False):
        """batch_shape: of the latents of one step, [n, c, h, w], from which the host's memory manager learns what to keep free."""
        supported_family(patcher)
        patcher = ordinary(patcher)
        needed = training_memory(patcher, batch_shape, checkpointing) if batch_shape else 0
        comfy.model_management.load_models_gpu([patcher], memory_required=needed)
        self.sampling = patcher.get_model_object("model_sampling")
        self.prediction: str = _prediction(self.sampling)  # not None: `supported_family` refuses that
        self.network = training_copy(patcher.model.diffusion_model)
        make_differentiable(self.network)
        if checkpointing:
            gradient_checkpointing(self.network)
        self.model = _around(patcher.model, self.network, self.sampling)
        self.device = patcher.load_device
        self.dtype = patcher.model.get_dtype_inference()
        self.latent_channels = patcher.model.latent_format.latent_channels
        self.latent_scale = patcher.model.latent_format.spacial_downscale_ratio

    def latents(self, encoded: torch.Tensor) -> torch.Tensor:
        """The VAE's latents [n, c, h, w], or [n, c, 1, h, w] for videos, in the scale that the network works in."""
        wanted = self.model.latent_format.latent_dimensions + 2
        if encoded.ndim != wanted:  # the host would broadcast its own scale over them, to a film that nobody made
            raise ValueError(f"The latents have {encoded.ndim} dimensions, and this model takes {wanted}. Connect the VAE that belongs to the model.")
        return self.model.process_latent_in(encoded)

    def draw_sigmas(self, count: int, generator: torch.Generator, distribution: str = "auto") -> torch.Tensor:
        """[count] noise levels, float32 on the CPU.

        eps, v       "uniform" over the steps of the discrete schedule (DDPM, and the three papers; = "auto"), or "logit-normal" over them
        flow         "logit-normal": t = sigmoid(N(0, 1)) through the model's own time shift (SD 3, Esser et al. 2024, section 3.1; = "auto"), or
                     t "uniform" in (0, 1] through the same
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
        """The signal-to-noise ratio [n] at the noise levels `sigma` [n]: alpha^2 / sigma^2 of what the network sees."""
        return ((1 - sigma) / sigma) ** 2 if self.prediction == "flow" else sigma**-2.0

    def predict(self, latents, noise, sigma, prompts: list[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network says and what it should have said, both [n, c, h, w] float32.

        latents, noise  [n, c, h, w], the former as `latents` gives them
        sigma           [n], as `draw_sigmas` gives them
        prompts         one (conditioning [1, positions, width], pooled or None, further entries) for each row; the lengths may differ
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
        """`latents` with `noise` at the levels `sigma`, unscaled, as the host's samplers carry it: [n, c, h, w]."""
        return self.sampling.noise_scaling(sigma.to(self.device, torch.float32), noise, latents)

    def output(self, noisy, sigma, prompts: list[Prompt]) -> torch.Tensor:
        """What the network says to `noisy` [n, c, h, w] at `sigma` [n]: [n, c, h, w] float32.

        Output preservation asks it twice with the same `noisy`, `sigma` and class prompts: with the adapters, and without gradient while
        they are switched off, when the network is the base model.
        """
        sigma = sigma.to(self.device, torch.float32)
        rows = [self._conditions(prompt, noisy) for prompt in prompts]
        groups: list[list[int]] = []
        for index, row in enumerate(rows):
            fitting = (group for group in groups if _can_concat(rows[group[0]], row))
            if (group := next(fitting, None)) is not None:
                group.append(index)
            else:
                groups.append([index])
        outputs: dict[int, torch.Tensor] = {}
        for group in groups:  # rows whose conditions do not fit into one tensor cannot share one pass
            conditions = {name: first.concat([rows[other][name] for other in group[1:]]) for name, first in rows[group[0]].items()}
            part = self.model.apply_model(noisy[group], sigma[group], transformer_options={"optimized_attention_override": _attention}, **conditions)
            outputs.update(zip(group, part, strict=True))
        return torch.stack([outputs[index] for index in range(len(rows))])

    def _conditions(self, prompt: Prompt, noisy) -> dict:
        """The host's condition objects of one row, by the model's own `extra_conds` (context; pooled and size embeddings where it has them)."""
        conditioning, pooled, *rest = prompt
        scale = self.latent_scale
        given = {"width": noisy.shape[-1] * scale, "height": noisy.shape[-2] * scale, **(rest[0] if rest else {})}
        given |= {"cross_attn": conditioning.to(self.device), "device": self.device, "noise": noisy[:1], "prompt_type": "positive"}
        given["pooled_output"] = None if pooled is None else pooled.to(self.device)  # the host gives it, too, where an encoder has none
        return {name: condition.process_cond(batch_size=1, area=None) for name, condition in self.model.extra_conds(**given).items()}


def training_memory(patcher: Model, batch_shape: tuple[int, ...], checkpointing: bool = False) -> float:
    """Bytes to keep free beside the weights for a step on latents of `batch_shape`, from the host's measure of a model's appetite.

    What the backward pass keeps, counted in bf16 on the real sizes, is 3.4 (SD 1.5) and 5.3 (SDXL) times the host's estimate of a
    forward pass, 5.7 (SD 3) and 9.1 (Flux) for transformers: 2.0 GiB at 512 pixels and 10.3, 22.0, 67.7 at 1024, for one picture.
    With checkpointing it is under 0.3 GiB for SD 1.5, and 0.5, 0.3, 1.0; the activations of one block come on top.
    """
    forward = batch_shape[0] * math.prod(batch_shape[2:]) * 0.15 * patcher.model.memory_usage_factor * 2**20
    return forward * (1.0 if checkpointing else 5.5 if isinstance(patcher.model.diffusion_model, UNetModel) else 9.5)


def _attention(_chosen, *args, **kwargs):
    """Torch's attention in place of the one that the host was started with, some of which have no gradient (sage), or a slow one (sub-quadratic)."""
    return attention_pytorch(*args, **kwargs)


class _Output:
    """A noise schedule under which the host's `apply_model` returns what the network says, instead of the denoised picture."""

    def __init__(self, sampling):
        self.calculate_input, self.timestep = sampling.calculate_input, sampling.timestep

    def calculate_denoised(self, sigma, model_output, model_input):
        return model_output


def _around(model, network, sampling):
    """The host's model object, whose own way of calling a network (dtypes, time steps, conditions) then calls `network`; nothing is shared but weights."""
    clone = copy.copy(model)
    clone._modules = {name: module for name, module in model._modules.items() if name != "model_sampling"}
    clone._modules["diffusion_model"] = network
    clone.__dict__.update(model_sampling=_Output(sampling), current_patcher=None)
    return clone


def _prediction(sampling) -> str | None:
    return _PREDICTIONS.get(getattr(type(sampling), "calculate_denoised", None))


def _takes_more_channels(model) -> bool:
    """Does the first layer expect more channels than a latent has?"""
    wanted = model.latent_format.latent_channels
    config = model.model_config.unet_config
    if config.get("image_model") in ("qwen_image", "chroma"):  # these count the channels of a 2 x 2 patch
        wanted *= 4
    return config.get("in_channels", config.get("in_dim", wanted)) > wanted


def _can_concat(row: dict, other: dict) -> bool:
    return row.keys() == other.keys() and all(value.can_concat(other[name]) for name, value in row.items())
