"""All settings of a run, declared once and checked before anything starts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from ..formats.token_rows import ALL
from ..formats.token_rows import USUAL as USUAL_ROWS
from .adapters.kinds import KINDS
from .declare import check, declared, setting
from .methods import METHODS, Method
from .watch_settings import KeepSettings, WatchSettings

TARGETS = ("attention", "attention + feed-forward", "attention + feed-forward + convolutions", "cross-attention", "text")
LOSSES = ("l2", "huber", "smooth_l1")
NOISE = ("auto", "uniform", "logit-normal")
CROPS = ("square", "buckets")
OPTIMIZERS = ("AdamW", "AdamW 8-bit", "Prodigy", "Adafactor")
SCHEDULES = ("constant", "linear", "cosine", "cosine with restarts")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
PUBLIC_ROWS = (USUAL_ROWS, "token", ALL)
MAX_VECTORS = 8  # of one token

USUAL_TEXT_RATE = 5e-5
PRODIGY_RATE = 1.0  # Prodigy finds the rate itself and expects 1
_RATE = {"least": 0, "most": 10, "step": 1e-6, "automatic": True}


@dataclass(frozen=True)
class TrainSettings:
    """All that shapes what is learned. The defaults are ClassDiffusion's (ICLR 2025; 500 steps for one concept, 800 for several).

    Raises ValueError that begins with the setting's name where a value cannot be.
    """

    method: str = setting("kv + token", f"What is trained. {' '.join(f'{name}: {one.what}.' for name, one in METHODS.items())}", "main", choices=tuple(METHODS))

    rank: int = setting(16, "Rank of the adapter: its capacity. 4 to 32 is usual for one subject.", "adapter", least=1, most=1024, optional=False)
    alpha: float = setting(
        0.0, "The adapter is scaled by alpha / rank. auto: the rank, a scale of 1.", "adapter", least=0, most=1024, step=0.5, automatic=True, advanced=True
    )
    targets: str = setting(
        "attention",
        "The layers that get an adapter. More layers hold more of the subject, and more of the photos' look.",
        "adapter",
        choices=TARGETS,
        advanced=True,
    )
    adapter: str = setting("LoRA", "Type of the adapter. Every tool reads LoRA, and it costs the least.", "adapter", choices=tuple(KINDS), advanced=True)
    train_text_encoder: bool = setting(
        False, "Also put an adapter on the text encoder. The Semantic Preservation Loss then keeps it close to the class.", "adapter", advanced=True
    )
    text_learning_rate: float = setting(
        0.0, "Learning rate of the text encoder's adapter. auto: 5e-5, or half of learning_rate if that is a number.", "adapter", **_RATE, advanced=True
    )

    token_learning_rate: float = setting(
        0.0, "Learning rate of the token vectors. auto: the method's usual rate, or learning_rate if that is a number.", "token", **_RATE, advanced=True
    )
    vectors: int = setting(
        1, "Vectors for each token. More hold more of the subject and drift further from its class.", "token", least=1, most=MAX_VECTORS, advanced=True
    )
    direction_only: bool = setting(
        False,
        "Train only the direction of the vectors; their length stays at the vocabulary's (Directional Textual Inversion, 2025).",
        "token",
        advanced=True,
    )

    spl_weight: float = setting(
        1.0,
        "Weight of the Semantic Preservation Loss, which keeps the token close to its class. 0 = off. In the paper 0.01 to 100 give nearly the same result.",
        "main",
        least=0,
        most=1000,
        step=0.01,
    )
    prior_weight: float = setting(
        1.0, "Weight of the loss on the concepts' prior images. No effect without prior images.", "losses", least=0, most=100, step=0.05, advanced=True
    )
    steps: int = setting(500, "Training steps. The papers use 500 for one subject and 800 for several.", "main", least=1, most=1_000_000)
    batch_size: int = setting(2, "Photos in each step. Prior images are added to these.", "data", least=1, most=4096, advanced=True)
    learning_rate: float = setting(
        0.0,
        "Learning rate of the model's part. auto: the method's usual rate, 2e-5 for kv + token (the paper's code), 1e-4 for LoRA, 5e-4 for a token alone.",
        "main",
        **_RATE,
    )
    resolution: int = setting(
        0,
        "Side of the square training picture in pixels. auto: the model's own, 512 for SD 1.5, 1024 for SDXL, SD3 and Flux.",
        "main",
        least=64,
        most=4096,
        step=8,
        automatic=True,
    )
    seed: int = setting(0, "The same seed, photos and settings give the same result.", "main", least=0, most=2**64 - 1, seed=True)

    augment: bool = setting(
        True, "Show the subject at different sizes and positions, with prompts that say so (Custom Diffusion's augmentation).", "data", advanced=True
    )
    flip: bool = setting(True, "Mirror half of the pictures. Turn it off for subjects with writing or one-sided marks.", "data", advanced=True)

    weight_decay: float = setting(0.01, "The optimizer's weight decay.", "optimizer", least=0, most=1, step=0.001, advanced=True)
    clip_norm: float = setting(1.0, "Clip gradients to this norm. 0 = never.", "optimizer", least=0, most=100, step=0.1, advanced=True)
    precision: str = setting(
        "auto",
        "Precision of the forward pass; trained weights stay in fp32. auto: bf16 if the graphics card has it, fp16 with loss scaling on older ones, fp32 on a processor.",
        "optimizer",
        choices=PRECISIONS,
        advanced=True,
    )
    accumulation: int = setting(
        1, "Forward and backward passes for each step: the effect of a larger batch without its memory.", "optimizer", least=1, most=1024, advanced=True
    )
    gradient_checkpointing: bool = setting(
        False,
        "Recompute activations in the backward pass instead of keeping them: much less memory, about a third slower.",
        "optimizer",
        advanced=True,
    )
    optimizer: str = setting(
        "AdamW",
        "AdamW 8-bit needs the package bitsandbytes and a CUDA card, Prodigy needs the package prodigyopt; leave all learning rates at auto with it.",
        "optimizer",
        choices=OPTIMIZERS,
        advanced=True,
    )
    schedule: str = setting("constant", "How the learning rates change over the run.", "optimizer", choices=SCHEDULES, advanced=True)
    warmup_steps: int = setting(0, "Steps over which the learning rates rise from 0.", "optimizer", least=0, most=100_000, advanced=True)
    ema_decay: float = setting(
        0.0,
        "Decay of the moving average of the weights, which becomes the result. 0 = use the last weights; 0.99 is usual for 500 steps.",
        "optimizer",
        least=0,
        most=0.99999,
        step=0.001,
        advanced=True,
    )

    preservation_weight: float = setting(
        0.0,
        "Weight of output preservation (DOP): on the class prompt, the tuned model is kept close to the base model. Costs two more forward passes.",
        "losses",
        least=0,
        most=100,
        step=0.1,
        advanced=True,
    )
    loss: str = setting("l2", "l2 is the papers' loss. The others weigh single large errors less.", "losses", choices=LOSSES, advanced=True)
    huber_delta: float = setting(0.1, "Where huber and smooth_l1 change from quadratic to linear.", "losses", least=1e-6, most=10, step=0.01, advanced=True)
    min_snr_gamma: float = setting(
        0.0,
        "Min-SNR weighting of the noise levels; 5 is usual. 0 = the papers' plain mean. Not for flow models.",
        "losses",
        least=0,
        most=100,
        step=0.5,
        advanced=True,
    )
    noise: str = setting("auto", "How noise levels are drawn. auto = as in the model's own paper.", "losses", choices=NOISE, advanced=True)
    crop: str = setting(
        "square",
        "square: the middle of each photo, as the papers do. buckets: the photos' own shapes, at about the same number of pixels.",
        "data",
        choices=CROPS,
        advanced=True,
    )
    caption_dropout: float = setting(0.0, "Probability that a photo gets the empty prompt.", "data", least=0, most=1, step=0.01, advanced=True)

    rows: str = setting(
        USUAL_ROWS,
        "For methods with a token: which rows of the text the K and V differences change. token and end: the token's, those of the class word right behind it, "
        "and the end token's; prompts without the token stay the base model's. token: without the end token's. all: every row, as in the papers.",
        "reach",
        choices=PUBLIC_ROWS,
        advanced=True,
    )

    def __post_init__(self):
        check(self)
        if self.resolution % 8:
            raise ValueError(f"resolution is {self.resolution}; expected a multiple of 8 (512 for SD 1.5).")
        if self.train_text_encoder and not self.how.trains_text_encoder:
            able = " or ".join(repr(name) for name, method in METHODS.items() if method.trains_text_encoder)
            raise ValueError(f"train_text_encoder is on, but the method {self.method!r} leaves the text encoder as it is. Choose {able}.")
        if self.warmup_steps >= self.steps and self.warmup_steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, but the run has only {self.steps} steps. Make it smaller than steps.")

    @property
    def how(self) -> Method:
        """The method's row in the register."""
        return METHODS[self.method]

    @property
    def learns_tokens(self) -> bool:
        return self.how.tokens

    @property
    def token_rows(self) -> str:
        """On which rows of the text the network's differences act: a key of `formats.token_rows.ROWS`, or ALL."""
        return self.rows if self.how.tokens and self.how.network else ALL

    def rates(self) -> tuple[float, float, float]:
        """The learning rates of (network, tokens, text encoder), with the usual ones where the artist left them to the method."""
        if self.optimizer == "Prodigy":
            return self.learning_rate or PRODIGY_RATE, self.token_learning_rate or PRODIGY_RATE, self.text_learning_rate or PRODIGY_RATE
        usual = KINDS[self.adapter].rate if self.how.rate is None else self.how.rate
        given = self.learning_rate
        return given or usual, self.token_learning_rate or given or self.how.token_rate, self.text_learning_rate or given / 2 or USUAL_TEXT_RATE

    def as_text(self) -> dict[str, str]:
        """Every setting as text, as the states of a run compare them: 0 where a value is automatic."""
        return {name: str(value) for name, value in asdict(self).items()}

    def as_written(self) -> dict[str, str]:
        """Every setting as people write it, for the metadata of files."""
        return {one.name: str(one.shown(getattr(self, one.name))) for one in declared(TrainSettings)}

    def changed(self, **changes) -> TrainSettings:
        return replace(self, **changes)


SETTINGS = [*declared(TrainSettings), *declared(WatchSettings), *declared(KeepSettings)]


def from_inputs(values: dict) -> tuple[TrainSettings, WatchSettings, KeepSettings]:
    """The three parts of a node's or a file's values by name. ValueError for a value that cannot be, TypeError for an unknown name."""
    values = read_values(values)
    parts = []
    for part in (TrainSettings, WatchSettings, KeepSettings):
        names = {one.name for one in declared(part)}
        parts.append(part(**{name: value for name, value in values.items() if name in names}))
    return tuple(parts)


def read_values(values: dict) -> dict:
    """`values` as numbers, where they may be the word "auto". ValueError for a value that cannot be, TypeError for an unknown name."""
    known = {one.name: one for one in SETTINGS}
    if unknown := values.keys() - known.keys():
        raise TypeError(f"There is no setting {', '.join(sorted(unknown))}.")
    read = {name: known[name].read(value) for name, value in values.items()}
    for name, value in read.items():
        known[name].check(value)
    return read
