"""All that shapes a run, checked before anything starts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace

METHODS = ("kv + token", "lora + token", "lora", "token")
ADAPTERS = ("LoRA", "DoRA", "LoHa", "LoKr", "OFT")
TARGETS = ("cross-attention", "attention", "attention + feed-forward", "attention + feed-forward + convolutions")
LOSSES = ("l2", "huber", "smooth_l1")
NOISE = ("auto", "uniform", "logit-normal")
CROPS = ("square", "buckets")
OPTIMIZERS = ("AdamW", "AdamW 8-bit", "Prodigy", "Adafactor")
SCHEDULES = ("constant", "linear", "cosine", "cosine with restarts")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

# (network, tokens) where the artist left the rate at 0. K/V: ClassDiffusion's code, 1e-5 times its batch of 2. LoRA: DreamBooth-LoRA's
# usual rate, with pivotal tuning's for the token. Token: diffusers' textual inversion.
USUAL_RATES = {"kv + token": (2e-5, 2e-5), "lora + token": (1e-4, 5e-4), "lora": (1e-4, 0.0), "token": (0.0, 5e-4)}
USUAL_TEXT_RATE = 5e-5
PRODIGY_RATE = 1.0  # Prodigy finds the rate itself and expects 1


@dataclass(frozen=True)
class TrainSettings:
    """All that shapes what is learned. The defaults are ClassDiffusion's (ICLR 2025; 500 steps for one concept, 800 for several).

    method                      what is learned, one of METHODS
    steps, batch_size           optimizer steps; photos in each forward pass (prior images come on top)
    accumulation                forward and backward passes in one step
    learning_rate               of K/V or LoRA, for method "token" of the tokens; 0 = the method's usual (`rates()`)
    token_learning_rate         of the tokens' vectors; 0 = the method's usual, or learning_rate where that was given
    text_learning_rate          of the text encoder's LoRA; 0 = 5e-5, or half of learning_rate where that was given
    adapter, rank, alpha        of the LoRA methods; alpha 0 = rank, so that what was learned counts as it is
    targets                     the layers that get an adapter
    train_text_encoder          an adapter on the text encoder, too (LoRA methods)
    vectors, direction_only     of a token; direction_only keeps their norm at the vocabulary's (Directional Textual Inversion)
    spl_weight                  of the Semantic Preservation Loss; 0 leaves it out
    prior_weight                of the loss on the concepts' prior images, where there are any
    preservation_weight         of output preservation (DOP): the tuned model, given the class prompt, is held to the base model's output
    loss, huber_delta           the error's form; delta is where Huber turns from square to straight
    min_snr_gamma               min-SNR weighting (Hang et al. 2023), 5 is usual; 0 leaves it out
    noise                       how the noise level of a row is drawn: uniform over the schedule, or logit-normal; auto = the papers'
    augment, flip, crop         what a photo becomes (see `Dataset`)
    caption_dropout             probability that a row gets the empty prompt
    optimizer, schedule, warmup_steps, weight_decay, clip_norm
    ema_decay                   of the average of the weights over the steps, which is then the result; 0 = the last weights
    precision                   of the forward pass; what is learned is kept in float32
    gradient_checkpointing      activations are computed again in the backward pass instead of kept
    """

    method: str = "kv + token"
    steps: int = 500
    batch_size: int = 2
    accumulation: int = 1
    learning_rate: float = 0.0
    token_learning_rate: float = 0.0
    text_learning_rate: float = 0.0
    resolution: int = 512
    seed: int = 0
    adapter: str = "LoRA"
    rank: int = 16
    alpha: float = 0.0
    targets: str = "attention"
    train_text_encoder: bool = False
    vectors: int = 1
    direction_only: bool = False
    spl_weight: float = 1.0
    prior_weight: float = 1.0
    preservation_weight: float = 0.0
    loss: str = "l2"
    huber_delta: float = 0.1
    min_snr_gamma: float = 0.0
    noise: str = "auto"
    augment: bool = True
    flip: bool = True
    crop: str = "square"
    caption_dropout: float = 0.0
    optimizer: str = "AdamW"
    schedule: str = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    precision: str = "auto"
    gradient_checkpointing: bool = False

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{field.name} is {value}; expected a number.")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(map(repr, choices))}.")
        for name, (least, most) in _LIMITS.items():
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"{name} is {value}; at least {least} is expected.")
            if most is not None and value > most:
                raise ValueError(f"{name} is {value}; at most {most} is expected.")
        if self.resolution % 8 or self.resolution < 64:
            raise ValueError(f"resolution is {self.resolution}; expected a multiple of 8, at least 64 (512 for SD 1.5).")
        if self.train_text_encoder and not self.method.startswith("lora"):
            raise ValueError(f"train_text_encoder is on, but the method {self.method!r} leaves the text encoder as it is. Choose 'lora' or 'lora + token'.")
        if self.warmup_steps >= self.steps and self.warmup_steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, but the run has only {self.steps} steps. Make it smaller than steps.")

    @property
    def learns_tokens(self) -> bool:
        return "token" in self.method

    def rates(self) -> tuple[float, float, float]:
        """The learning rates of (network, tokens, text encoder) with the usual ones filled in."""
        if self.optimizer == "Prodigy":
            return tuple(given or PRODIGY_RATE for given in (self.learning_rate, self.token_learning_rate, self.text_learning_rate))
        network, tokens = USUAL_RATES[self.method]
        given = self.learning_rate
        return given or network, self.token_learning_rate or given or tokens, self.text_learning_rate or given / 2 or USUAL_TEXT_RATE

    def as_text(self) -> dict[str, str]:
        """Every setting as text, for files' metadata."""
        return {name: str(value) for name, value in asdict(self).items()}

    def changed(self, **changes) -> TrainSettings:
        return replace(self, **changes)


_CHOICES = {
    "method": METHODS,
    "adapter": ADAPTERS,
    "targets": TARGETS,
    "loss": LOSSES,
    "noise": NOISE,
    "crop": CROPS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
}
_LIMITS: dict[str, tuple[float, float | None]] = {
    "steps": (1, None),
    "batch_size": (1, None),
    "accumulation": (1, None),
    "learning_rate": (0, None),
    "token_learning_rate": (0, None),
    "text_learning_rate": (0, None),
    "seed": (0, 2**64 - 1),
    "rank": (1, 1024),
    "alpha": (0, None),
    "vectors": (1, 8),
    "spl_weight": (0, None),
    "prior_weight": (0, None),
    "preservation_weight": (0, None),
    "huber_delta": (1e-6, None),
    "min_snr_gamma": (0, None),
    "caption_dropout": (0, 1),
    "warmup_steps": (0, None),
    "weight_decay": (0, None),
    "clip_norm": (0, None),
    "ema_decay": (0, 0.99999),
}
