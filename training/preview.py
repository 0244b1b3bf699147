"""Previews while training: pictures of some prompts every few steps, with Personalization Guidance if wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..guidance.guider import personalize
from ..guidance.schedule import Schedule
from ..host import drawing, text
from ..host import preview as host_preview
from ..host.lora import apply_lora
from .data.concept import Concept
from .run import Run
from .scoring import Drawn


@dataclass(frozen=True)
class Preview:
    """Draws after every `every` steps. It changes nothing of what is learned.

    prompts  may say {token} and {class}: then each concept has its turn. A prompt without them is drawn once. negative: likewise
    omega    of Personalization Guidance: 1 is plain CFG
    side     of the picture in pixels, 0 = the training resolution
    """

    every: int
    prompts: tuple[str, ...]
    negative: str = ""
    omega: float = 1.0
    cfg: float = 7.5
    steps: int = 12
    seed: int = 0
    side: int = 0
    sampler: str = "dpmpp_2m"
    scheduler: str = "normal"

    def __post_init__(self):
        Schedule(self.omega)  # checks it before anything starts
        if self.every < 1:
            raise ValueError(f"preview_every is {self.every}; expected a number of steps, at least 1.")
        if not self.prompts:
            raise ValueError("preview_prompt is empty. Write what the previews should show, or set preview_every to 0.")

    def draw(self, run: Run, score: Callable[[list[Drawn]], None] | None = None) -> list[Drawn]:
        """The pictures of the result so far. `score` is called with them while the host may load other models."""
        side = self.side or run.settings.resolution
        sampling = {"steps": self.steps, "cfg": self.cfg, "sampler_name": self.sampler, "scheduler": self.scheduler}
        result, drawn = run.result(), []
        with host_preview.sampling_mode():
            model, clip = apply_lora(run.model, run.clip, result.lora)
            clip = text.carry_tokens(clip, result.tokens) if result.tokens else clip
            if self.omega < 1 and model is not run.model and any(key.startswith("diffusion_model.") for key in result.lora):
                model = personalize(model, run.model, Schedule(self.omega))
            try:
                for prompt, index in turns(self.prompts, len(run.concepts)):
                    words = filled(prompt, run.concepts[index or 0])
                    positive, negative = (drawing.conditioning(clip, part) for part in (words, filled(self.negative, run.concepts[index or 0])))
                    picture = drawing.draw(model, run.vae, positive, negative, side, side, 1, self.seed, sampling)[0]
                    drawn.append(Drawn(picture, words, index))
                if score is not None:
                    score(drawn)
            finally:
                host_preview.load_again(run.model)
                if clip.patcher is not run.clip.patcher:
                    host_preview.load_again(run.clip.patcher)
        return drawn


def turns(prompts: tuple[str, ...], concepts: int) -> list[tuple[str, int | None]]:
    """(prompt, concept) of each picture: every prompt for each concept in turn, or once (None) if it says neither {token} nor {class}."""
    return [(prompt, index) for prompt in prompts for index in (range(concepts) if "{token}" in prompt or "{class}" in prompt else (None,))]


def filled(prompt: str, concept: Concept) -> str:
    return prompt.replace("{token}", concept.token).replace("{class}", concept.class_word)
