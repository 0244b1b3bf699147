"""One training run: what a step computes, and the state that the next step depends on."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path

import torch

from ..formats import token_rows
from ..formats.concept_file import LearnedLora
from ..formats.manifest import digests
from ..host import denoiser as host_denoiser
from ..host import text
from ..host import training as host_training
from ..host.fingerprint import model_hash
from ..host.trainable_text import TrainableText
from ..host.types import Clip, Model, Vae
from . import losses
from .adapters.learned import Learned
from .adapters.tokens import check_tokens
from .advice import step_shape
from .data.concept import Concept, with_own_initializers
from .data.dataset import Batch, Dataset, random_state
from .description import describe, measured
from .distributed import SingleProcess
from .heldout import HeldOut
from .measures import History, Step, Trained, marks_of
from .optimizers import make_optimizer, make_schedule, set_rates
from .prompts import Prompts, without_token
from .settings import TrainSettings

log = logging.getLogger(__name__)

SKIPPED = 20  # steps in a row; the loss scale has then been halved so often that it is not what overflows
LEAK_EVERY = 25  # steps between two measurements of the leak: one forward of one row, about 1% of the time
DRIFT_EVERY = 10  # steps between two measurements of the drift, where the Semantic Preservation Loss does not need it


class Run:
    """One training run: `prepare`, then `step(0)`, `step(1)`, ..., within the host's training mode.

    `state()` after a step holds all that the next one depends on; `restore` resumes from it, bit for bit.
    """

    def __init__(self, model: Model, clip: Clip, vae: Vae, concepts: list[Concept], settings: TrainSettings, processes: SingleProcess | None = None):
        if settings.learns_tokens:
            concepts = with_own_initializers(concepts)
        self.model, self.clip, self.vae, self.concepts, self.settings = model, clip, vae, concepts, settings
        self.processes = processes or SingleProcess()
        if settings.batch_size < self.processes.world:
            raise ValueError(f"batch_size is {settings.batch_size}, which is less than one photo for each of the {self.processes.world} processes. Raise it.")
        self.data = Dataset(
            concepts,
            settings.resolution,
            settings.batch_size,
            settings.steps * settings.accumulation,
            settings.seed,
            augment=settings.augment,
            flip=settings.flip,
            latent_scale=host_denoiser.latent_scale(model),
            latent_dimensions=host_denoiser.latent_dimensions(model),
            crop=settings.crop,
            caption_dropout=settings.caption_dropout,
        )
        self.history = History([concept.token for concept in concepts])
        self._of_base: torch.Tensor | None = None  # the base model's predictions for the class prompts, which the leak is measured from
        self.folder: Path | None = None  # where the run is saved
        self.changes: list[str] = []  # of settings, when the run went on: "after step 500: steps was 500, is 800"
        self.heldout = HeldOut(self.data, settings.seed)
        self.consistent = True  # False while the weights move: the state is then half of one step and half of the next

    def prepare(self, on_encode: Callable[[int, int], None] | None = None, done: int = 0, measures: bool = False) -> None:
        """Encode the photos (for the steps after the first `done`), load and copy what is trained, make the optimizer. measures: the held-out loss, too."""
        settings = self.settings
        self.text = TrainableText(self.clip)
        self._check()
        if done < settings.steps:  # before the model is loaded, which would have to make room for the VAE
            self.data.encode(self._encode, on_encode, start=done * settings.accumulation)
            if measures:
                self.heldout.encode(self._encode)
        self.denoiser = host_denoiser.TrainableDenoiser(self.model, step_shape(self.model, self.concepts, settings), settings.gradient_checkpointing)
        self.device = self.denoiser.device
        with torch.no_grad():  # before anything is attached: the anchor is the frozen encoder's (AdaptSP 2026: a tuned one drifts, too)
            self.class_features = [self.text.eos_features(self.clip, concept.class_prompt) for concept in self.concepts] if self.text.has_clip else []
        self.learned = Learned(settings, self.denoiser, self.text, self.clip, self.concepts)
        tokens = self.learned.tokens.carried() if self.learned.tokens else []
        self.carrying = text.carry_tokens(self.clip, tokens) if tokens else self.clip
        self.prompts = Prompts(self.text, self.carrying, [token.text for token in tokens], frozen=self.learned.text is None)
        self.moves_text = bool(tokens) or self.learned.text is not None  # else nothing that is trained reaches the text feature
        self.optimizer = make_optimizer(settings, self.learned.groups())
        self.schedule = make_schedule(settings, self.optimizer)
        self.parameters = list(self.learned.parameters.values())
        precision = settings.precision
        if precision == "auto":
            cpu, cuda = self.device.type == "cpu", self.device.type == "cuda"
            precision = "fp32" if cpu else "bf16" if not cuda or torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        self.precision = precision
        self.autocast = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    @cached_property
    def base_hash(self) -> str:
        """Hash of the base model's weights; computed once, and only if a file names it."""
        return model_hash(self.model)

    def _check(self) -> None:
        """Raise ValueError for settings that do not fit together, before the photos are encoded."""
        settings = self.settings
        if settings.learns_tokens:
            check_tokens(self.clip, self.concepts)
        if settings.min_snr_gamma and host_denoiser.prediction(self.model) == "flow":
            raise ValueError("min_snr_gamma weights by a variance-preserving schedule's signal-to-noise ratio, which flow models do not have. Set it to 0.")
        if settings.spl_weight and settings.learns_tokens and not self.text.has_clip:
            raise ValueError(
                "spl_weight is above 0, but the Semantic Preservation Loss is defined on CLIP's end-of-text feature, and this model's text encoder is not a CLIP. Set spl_weight to 0."
            )
        if settings.spl_weight and not settings.learns_tokens and not settings.train_text_encoder:
            log.info("Kindred: with the method 'lora' and a frozen text encoder nothing can drift, so the Semantic Preservation Loss has nothing to hold.")

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        host_training.interrupt_check()
        with torch.no_grad():
            return host_training.encode_pictures(self.vae, pixels)

    # -- a step ------------------------------------------------------------------------------------------------------

    def step(self, step: int) -> Step:
        """Step `step` of the run (from 0): losses, backward passes, optimizer.

        Raises FloatingPointError before the optimizer step if the loss or its gradient is not finite.
        """
        settings, parts = self.settings, []
        first: tuple[torch.Tensor, list[torch.Tensor]] = torch.zeros(()), []
        for turn in range(settings.accumulation):
            with self.casting():
                instance, prior, preserved = self._denoising_losses(step * settings.accumulation + turn)
                loss = (instance + settings.prior_weight * prior + settings.preservation_weight * preserved) / settings.accumulation
                drifts = self._drifts(step) if turn == 0 else []
                spl = losses.semantic_preservation(drifts) if drifts else torch.zeros(())
                if drifts and settings.spl_weight:
                    loss = loss + settings.spl_weight * spl.to(loss.device) / self.processes.world
            if loss.requires_grad:
                self.scaler.scale(loss).backward()
            parts.append(torch.stack([loss.detach(), instance.detach(), prior.detach(), preserved.detach()]))
            if turn == 0:
                first = spl.detach(), [value.detach() for value in drifts]
        norm = self._gradient(step, torch.stack(parts))
        leak = self._leak(step)
        measured, rates = self._measure(torch.stack(parts), first[0], first[1], norm), self.schedule.get_last_lr()
        self.consistent = False
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.learned.after_step(step)
        self.history.add(step + 1, measured, float(rates[0]), leak)
        self.consistent = True
        return self.history.steps[-1]

    def _gradient(self, step: int, parts: torch.Tensor) -> torch.Tensor:
        """Sum the gradient over all processes, clip and check it. Returns its norm."""
        for parameter in self.parameters:
            if parameter.grad is None:  # this batch did not name it
                parameter.grad = torch.zeros_like(parameter)
        self.processes.all_reduce_sum([parameter.grad for parameter in self.parameters])
        self.scaler.unscale_(self.optimizer)
        self.learned.before_step()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip_norm or math.inf)
        self._check_finite(step, "loss", parts[:, 0].sum())
        if not self.scaler.is_enabled():  # with fp16 the scaler skips such a step and lowers its scale
            self._check_finite(step, "gradient", norm)
        return norm

    def _check_finite(self, step: int, what: str, value: torch.Tensor) -> None:
        if self.processes.any(not torch.isfinite(value)):
            self.optimizer.zero_grad(set_to_none=True)
            network, tokens, _ = self.settings.rates()
            raise FloatingPointError(
                f"The {what} is {value.item()} at step {step + 1}. Lower learning_rate (now {network or tokens:g}), or train in precision 'fp32'."
            )

    def check_skipped(self) -> None:
        """Raise FloatingPointError if fp16 overflows in every step: an overflow skips a step and halves the loss scale, and that did not help."""
        done, row = len(self.history.steps), self.history.skipped_last
        if row >= SKIPPED or row == done == self.settings.steps:
            raise FloatingPointError(
                f"The gradient overflows in precision 'fp16': the last {row} steps were skipped. Choose precision 'bf16' or 'fp32', "
                "or lower the learning rate and the weights of the losses."
            )

    def _measure(self, parts: torch.Tensor, spl: torch.Tensor, drifts: list[torch.Tensor], norm: torch.Tensor) -> list[float]:
        """[loss, instance, prior, preservation, spl, norm, *drifts], read from the device in one transfer."""
        count = self.settings.accumulation
        totals = torch.stack([parts[:, 0].sum(), *(parts[:, 1:].sum(dim=0) / count)])
        if self.processes.world > 1:
            self.processes.all_reduce_sum([totals])
        values = [*totals, spl.to(totals.device), norm.to(totals.device), *(value.to(totals.device) for value in drifts)]
        return torch.stack([value.float() for value in values]).tolist()

    def casting(self):
        """The context of a forward pass: autocast, where the precision is not fp32."""
        return torch.autocast(self.device.type, dtype=self.autocast) if self.autocast else nullcontext()

    def _denoising_losses(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(L_recon of the photos, L_recon of the prior images or 0, output preservation or 0) of batch `index`.

        Each is this process's share of the mean over the global batch.
        """
        settings, batch = self.settings, self.data.batch(index)
        latents, noise, sigma = self._noised(batch, index)
        mine = slice(self.processes.rank, None, self.processes.world)
        whole, prior, prompts = len(batch.prompts), batch.prior[mine].to(self.device), batch.prompts[mine]
        latents, noise, sigma = latents[mine].to(self.device), noise[mine].to(self.device), sigma[mine].to(self.device)
        output, target = self.denoiser.predict(latents, noise, sigma, self.prompts(prompts))
        rows = losses.reconstruction(output, target, batch.masks[mine].to(self.device), settings.loss, settings.huber_delta)
        if settings.min_snr_gamma:
            rows = rows * losses.min_snr_weight(self.denoiser.snr(sigma), settings.min_snr_gamma, self.denoiser.prediction)
        instances, priors = max(int((~batch.prior).sum()), 1), max(int(batch.prior.sum()), 1)
        preserved = rows.new_zeros(())
        if settings.preservation_weight:
            kinds = [
                without_token(prompt, self.concepts[concept].token, self.concepts[concept].class_word)
                for prompt, concept in zip(prompts, batch.concepts[mine], strict=True)
            ]
            preserved = self._preservation(latents, noise, sigma, kinds).sum() / whole
        return rows[~prior].sum() / instances, rows[prior].sum() / priors, preserved

    def _noised(self, batch: Batch, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Latents in the network's scale, noise, and noise levels of the global batch: equal in every process."""
        generator = torch.Generator().manual_seed(int(random_state(self.settings.seed, 4, index).integers(2**63)))
        latents = self.denoiser.latents(batch.latents)
        noise = torch.randn(latents.shape, generator=generator)
        return latents, noise, self.denoiser.draw_sigmas(len(latents), generator, self.settings.noise)

    def _preservation(self, latents, noise, sigma, prompts: list[str]) -> torch.Tensor:
        """Output preservation of each row: the distance of the tuned output for the class prompt from the base's."""
        noisy = self.denoiser.noisy(latents, noise, sigma)
        with torch.no_grad(), self.learned.disabled():
            base = self.denoiser.output(noisy, sigma, self.prompts(prompts))
        return losses.output_preservation(self.denoiser.output(noisy, sigma, self.prompts(prompts)), base)

    def _drifts(self, step: int) -> list[torch.Tensor]:
        """Each concept's drift now; empty if it cannot change or is not measured in this step."""
        if not self.class_features or not self.moves_text or not (self.settings.spl_weight or step % DRIFT_EVERY == 0):
            return []
        with nullcontext() if self.settings.spl_weight else torch.no_grad():
            return [
                losses.drift(self.text.eos_features(self.carrying, concept.token_prompt), kind)
                for concept, kind in zip(self.concepts, self.class_features, strict=True)
            ]

    @torch.no_grad()
    def _leak(self, step: int) -> float | None:
        """`Step.leak` over all concepts' class prompts now; None if it is not measured in this step."""
        every = LEAK_EVERY * len(self.concepts)
        if self.learned.network is None or (step % every and step + 1 != self.settings.steps):
            return None
        prompts, side = [concept.class_prompt for concept in self.concepts], self.settings.resolution // self.denoiser.latent_scale
        frames = [1] * (self.denoiser.latent_dimensions - 2)
        noise = torch.randn(1, self.denoiser.latent_channels, *frames, side, side, generator=torch.Generator().manual_seed(0)).to(self.device)
        sigma = torch.full((len(prompts),), self.denoiser.middle_sigma)
        noisy = self.denoiser.noisy(torch.zeros_like(noise), noise, sigma[:1]).expand(len(prompts), *noise.shape[1:])
        with self.casting():
            if self._of_base is None:
                with self.learned.disabled():
                    self._of_base = self.denoiser.output(noisy, sigma, self.prompts(prompts)).float()
            moved = self.denoiser.output(noisy, sigma, self.prompts(prompts)).float() - self._of_base
        return float((moved.norm() / self._of_base.norm()).item())

    # -- what a run is -----------------------------------------------------------------------------------------------

    def state(self, finished: bool = False) -> dict:
        """All that the next step depends on besides (photos, settings, step); of a finished run too, which may go on."""
        history = {"history": self.history.tensor(), "marks": self.history.marks_tensor(), "changes": list(self.changes)}
        moving = {"optimizer": self.optimizer.state_dict(), "schedule": _plain(self.schedule.state_dict()), "scaler": self.scaler.state_dict()}
        return {**self.learned.state(), **history, **moving, "finished": finished}

    def state_size(self) -> int:
        """Approximate bytes of a state: AdamW keeps two values for each weight."""
        return sum(parameter.numel() * 4 for parameter in self.parameters) * (4 if self.settings.ema_decay else 3)

    def result_size(self) -> int:
        """Approximate bytes of the result as files in float32."""
        return sum(parameter.numel() * 4 for parameter in self.parameters)

    def restore(self, state: dict) -> None:
        self.learned.restore(state)
        self.history.restore(state["history"])
        self.history.marks = marks_of(state)
        self.changes = list(state.get("changes", []))
        if "optimizer" not in state:  # an older version kept none of a finished run
            return
        rates, decays = ([group[name] for group in self.optimizer.param_groups] for name in ("initial_lr", "weight_decay"))
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict({**state["schedule"], "lr_lambdas": [None] * len(self.optimizer.param_groups)})
        set_rates(self.optimizer, self.schedule, rates, decays)  # the settings' own, which may have changed since
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])

    def result(self) -> Trained:
        """What has been learned so far."""
        about = describe(self.model, self.denoiser.prediction, self.concepts, self.settings, self.precision, self.base_hash)
        with self.learned.averaged():
            about |= measured(self.history, self.changes)
            tokens = self.learned.learned_tokens(about)
            if self.learned.rows != token_rows.ALL:
                about[token_rows.TOKENS] = json.dumps([digest for token in tokens for digest in digests(token.vectors)])
            return Trained(LearnedLora(self.learned.lora(), about), tokens, list(self.history.steps), list(self.history.marks))


def _plain(state: dict) -> dict:
    """A schedule's state without the functions that its settings make anew."""
    return {key: value for key, value in state.items() if key != "lr_lambdas"}
