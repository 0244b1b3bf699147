"""When: the training loop. `train(...)` is called by the node, the demo and the command line alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields

import torch

from ..formats.token import LearnedToken
from ..host import text
from ..host import training as host
from .adapters import WeightDifference
from .concept import Concept
from .dataset import Batch, Dataset, random_state
from .losses import drift, reconstruction, semantic_preservation
from .tokens import TokenVectors


@dataclass(frozen=True)
class TrainSettings:
    """All that shapes a run. The defaults are ClassDiffusion's (ICLR 2025; 500 steps for one concept, 800 for several).

    learning_rate        AdamW's, for K and V; the released code's 1e-5 times its batch of 2
    token_learning_rate  for the tokens' vectors; 0 = the same
    spl_weight           of the Semantic Preservation Loss; 0 leaves it out
    prior_weight         of the loss on the concepts' prior images, where there are any
    """

    steps: int = 500
    batch_size: int = 2
    learning_rate: float = 2e-5
    token_learning_rate: float = 0.0
    resolution: int = 512
    seed: int = 0
    spl_weight: float = 1.0
    prior_weight: float = 1.0
    augment: bool = True
    flip: bool = True
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    precision: str = "auto"

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{field.name} is {value}; expected a number.")
        for name, least in {
            "steps": 1,
            "batch_size": 1,
            "seed": 0,
            "spl_weight": 0,
            "prior_weight": 0,
            "weight_decay": 0,
            "token_learning_rate": 0,
            "clip_norm": 0,
        }.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; at least {least} is expected.")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected a small positive number, for example 2e-5.")
        if self.resolution % 8 or self.resolution < 64:
            raise ValueError(f"resolution is {self.resolution}; expected a multiple of 8, at least 64 (512 for SD 1.5).")
        if self.precision not in ("auto", "fp32", "bf16", "fp16"):
            raise ValueError(f"precision is {self.precision!r}; expected 'auto', 'fp32', 'bf16' or 'fp16'.")


@dataclass(frozen=True)
class Step:
    """What one step measured. `drift` is 1 - cos of each token's prompt to its class prompt."""

    step: int
    loss: float
    reconstruction: float
    prior: float
    spl: float
    gradient_norm: float
    drift: dict[str, float]


@dataclass(frozen=True)
class Trained:
    """What a run gives: differences under core's LORA_MODEL names, the tokens, and each step's measures."""

    lora: dict[str, torch.Tensor]
    tokens: list[LearnedToken]
    history: list[Step]


def train(
    model,
    clip,
    vae,
    concepts: list[Concept],
    settings: TrainSettings,
    on_step: Callable[[Step], None] | None = None,
    on_encode: Callable[[int, int], None] | None = None,
) -> Trained:
    """Learn `concepts` on `model` and `clip` (the host's MODEL, CLIP, VAE), which stay as they are, bit for bit.

    Trained are attn2's K and V and one vector for each concept and text encoder, on L = L_recon + spl_weight * L_sp (ClassDiffusion,
    eq. 7), plus prior_weight * L_prior on prior images. The result is a function of the arguments alone: the same seed gives the same
    weights on the same processor. `on_step` sees each step; `on_encode(done, total)` the photos' encoding before.
    Raises ValueError for what cannot be trained, FloatingPointError when a loss or gradient is no number (before the optimizer step).
    The host's interrupt ends the run within one step.
    """
    if not concepts:
        raise ValueError("No concept is connected. Connect at least one Concept node.")
    tokens = [concept.token for concept in concepts]
    if len(set(tokens)) != len(tokens):
        raise ValueError(f"Two concepts share a token ({', '.join(map(repr, tokens))}). Give each one of its own, for example '<v1>' and '<v2>'.")
    host.supported_family(model)
    with host.training_mode():
        return Run(model, clip, vae, concepts, settings).run(on_step, on_encode)


class Run:
    """One run in its parts: `prepare`, then `step(0)`, `step(1)`, ...; within the host's training mode."""

    def __init__(self, model, clip, vae, concepts, settings: TrainSettings):
        self.settings, self.concepts, self.clip, self.vae = settings, concepts, clip, vae
        self.data = Dataset(concepts, settings.resolution, settings.batch_size, settings.steps, settings.seed, settings.augment, settings.flip)
        self.model = model

    def run(self, on_step, on_encode) -> Trained:
        self.prepare(on_encode)
        history = []
        for step in range(self.settings.steps):
            host.interrupt_check()
            history.append(self.step(step))
            if on_step:
                on_step(history[-1])
        settings = {"method": "kv + token", **{field.name: str(getattr(self.settings, field.name)) for field in fields(self.settings)}}
        return Trained(self.weights.lora(), self.vectors.learned(settings), history)

    def prepare(self, on_encode: Callable[[int, int], None] | None = None) -> None:
        """Encode the photos, load and copy what is trained, make the optimizer."""
        settings = self.settings
        self.data.encode(self._encode, progress=on_encode)
        self.text = host.TrainableText(self.clip)
        self.denoiser = host.TrainableDenoiser(self.model)
        self.weights = WeightDifference(self.denoiser.network)
        self.vectors = TokenVectors(self.clip, self.concepts, self.denoiser.device)
        self.carrying = text.carry_tokens(self.clip, self.vectors.carried())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": list(self.weights.parameters.values()), "lr": settings.learning_rate},
                {"params": list(self.vectors.parameters.values()), "lr": settings.token_learning_rate or settings.learning_rate},
            ],
            weight_decay=settings.weight_decay,
        )
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        precision = settings.precision
        device = self.denoiser.device.type
        if precision == "auto":
            precision = "fp32" if device == "cpu" else "bf16" if device != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        self.autocast = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.scaler = torch.amp.GradScaler(device, enabled=precision == "fp16")
        with torch.no_grad():
            self.class_features = [self.text.eos_features(self.clip, concept.class_prompt) for concept in self.concepts] if settings.spl_weight else []

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        host.interrupt_check()
        with torch.no_grad():
            return self.vae.encode(pixels)

    def step(self, step: int) -> Step:
        """Step `step` of the run (from 0): loss, backward pass, optimizer."""
        settings = self.settings
        with torch.autocast(self.denoiser.device.type, dtype=self.autocast) if self.autocast else nullcontext():
            instance, prior = self._denoising_loss(self.data.batch(step), step)
            drifts = self._drifts() if settings.spl_weight else []
            spl = semantic_preservation(drifts) if drifts else torch.zeros(())
            loss = instance + settings.prior_weight * prior + settings.spl_weight * spl.to(instance.device)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {step + 1}. Lower learning_rate (now {settings.learning_rate}), or train in precision 'fp32'."
            )
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, settings.clip_norm or math.inf)
        if not torch.isfinite(norm) and not self.scaler.is_enabled():  # with fp16 the scaler skips such a step and lowers its scale
            raise FloatingPointError(
                f"The gradient is {norm.item()} at step {step + 1}. Lower learning_rate (now {settings.learning_rate}), or train in precision 'fp32'."
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return Step(
            step + 1,
            loss.item(),
            instance.item(),
            prior.item(),
            spl.item(),
            norm.item(),
            {concept.token: value.item() for concept, value in zip(self.concepts, drifts, strict=False)},
        )

    def _denoising_loss(self, batch: Batch, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(L_recon over the instance rows, the same over the prior rows or 0)."""
        device = self.denoiser.device
        generator = torch.Generator().manual_seed(int(random_state(self.settings.seed, 4, step).integers(2**63)))
        latents = self.denoiser.latents(batch.latents.to(device))
        noise = torch.randn(latents.shape, generator=generator).to(device)
        timestep = torch.randint(self.denoiser.timesteps, (len(latents),), generator=generator)
        encoded = {prompt: self.text.encode(self.carrying, prompt) for prompt in dict.fromkeys(batch.prompts)}
        prediction, target = self.denoiser.predict(latents, noise, timestep, [encoded[prompt] for prompt in batch.prompts])
        losses = reconstruction(prediction, target, batch.masks.to(device))
        prior = losses[batch.prior.to(device)]
        return losses[~batch.prior.to(device)].mean(), prior.mean() if len(prior) else losses.new_zeros(())

    def _drifts(self) -> list[torch.Tensor]:
        """How far each concept's token prompt is from its class prompt now."""
        return [
            drift(self.text.eos_features(self.carrying, concept.token_prompt), kind) for concept, kind in zip(self.concepts, self.class_features, strict=True)
        ]
