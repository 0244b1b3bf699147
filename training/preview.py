"""Previews while training: pictures of one prompt every few steps, with Personalization Guidance if wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..guidance.guider import personalize
from ..guidance.schedule import Schedule
from ..host import drawing, text
from ..host import preview as host_preview
from ..host.lora import apply_lora
from .run import Run
from .settings import WatchSettings


@dataclass(frozen=True)
class Preview:
    """Draws after every `every` steps. It changes nothing of what is learned. Given to `train` as `preview`.

    prompt   may say {token} and {class}, those of the first concept;  negative: likewise
    omega    of Personalization Guidance: 1 is plain CFG
    side     of the picture in pixels, 0 = the training resolution
    show     called with (steps done, picture [side, side, 3] in 0..1, the run's folder or None)
    """

    every: int
    prompt: str
    show: Callable[[int, torch.Tensor, Path | None], None] = field(repr=False)
    negative: str = ""
    omega: float = 1.0
    cfg: float = 7.5
    steps: int = 20
    seed: int = 0
    side: int = 0
    sampler: str = "euler"
    scheduler: str = "normal"

    def __post_init__(self):
        Schedule(self.omega)  # checks it before anything starts
        if self.every < 1:
            raise ValueError(f"preview_every is {self.every}; expected a number of steps, at least 1.")

    def __call__(self, run: Run, done: int) -> None:
        if done % self.every and done != run.settings.steps:
            return
        sampling = {"steps": self.steps, "cfg": self.cfg, "sampler_name": self.sampler, "scheduler": self.scheduler}
        concept, side = run.concepts[0], self.side or run.settings.resolution
        result = run.result()
        with host_preview.sampling_mode():
            model, clip = apply_lora(run.model, run.clip, result.lora)
            clip = text.carry_tokens(clip, result.tokens) if result.tokens else clip
            positive, negative = (
                drawing.conditioning(clip, words.replace("{token}", concept.token).replace("{class}", concept.class_word))
                for words in (self.prompt, self.negative)
            )
            if self.omega < 1 and model is not run.model and any(key.startswith("diffusion_model.") for key in result.lora):
                model = personalize(model, run.model, Schedule(self.omega))
            try:
                picture = drawing.draw(model, run.vae, positive, negative, side, side, 1, self.seed, sampling)[0]
            finally:
                host_preview.load_again(run.model)
                if clip.patcher is not run.clip.patcher:
                    host_preview.load_again(run.clip.patcher)
        self.show(done, picture, run.folder)


def make_preview(show, watch: WatchSettings) -> Preview | None:
    """The preview that a node's or a recipe's settings ask for, or None."""
    if not watch.preview_every:
        return None
    return Preview(watch.preview_every, watch.preview_prompt, show, omega=watch.preview_omega, cfg=watch.preview_cfg)
