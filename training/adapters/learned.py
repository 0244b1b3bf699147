"""All trained parameters of a run: the network's adapter, the text encoder's, the token vectors, and their moving average."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ...formats.token import LearnedToken
from ...formats.token_rows import ALL
from ...host import text_rows
from ...host.families import TEXT_LAYERS, is_text_layer
from ...host.types import Clip
from ..data.concept import Concept
from ..declare import implemented
from ..methods import METHODS
from ..settings import TrainSettings
from .base import Adapter
from .kv import TokenRowsDifference, WeightDifference
from .layers import target_layers
from .side import attach_adapter
from .tokens import TokenVectors

log = logging.getLogger(__name__)


class Learned:
    """What `settings.method` trains, made on the training copies of a run.

    parameters  stable name -> float32 parameter; a saved state holds a copy of each
    tokens      None if the method trains no token vectors
    rows        on which rows of the text the network's differences act: a key of `formats.token_rows.ROWS`, or ALL
    """

    def __init__(self, settings: TrainSettings, denoiser, text, clip: Clip, concepts: list[Concept]):
        self.settings = settings
        self.network = self.text = self.tokens = None
        self.rows = _rows(settings, denoiser, clip)
        if settings.how.network:
            self.network = NETWORKS[settings.how.network](denoiser, settings, self.rows)
        if settings.train_text_encoder:
            targets = "attention + feed-forward" if "feed-forward" in settings.targets else "attention"  # a text encoder has no others
            self.text = _adapter(text.model, settings, targets, prefix="text_encoders.", device=text.device, patterns=TEXT_LAYERS)
        if settings.learns_tokens:
            self.tokens = TokenVectors(clip, concepts, denoiser.device, settings.vectors, settings.direction_only, seed=settings.seed, rows=self.rows)
        parts = {"network": self.network, "tokens": self.tokens, "text": self.text}
        self._parts = {name: part for name, part in parts.items() if part is not None}
        self.parameters = {f"{part}/{_text(name)}": parameter for part, owner in self._parts.items() for name, parameter in owner.parameters.items()}
        self.average: list[torch.Tensor] = [parameter.detach().clone() for parameter in self.parameters.values()] if settings.ema_decay else []

    def groups(self) -> list[dict]:
        """The optimizer's parameter groups, each with its own learning rate."""
        rates: dict[str, float] = dict(zip(("network", "tokens", "text"), self.settings.rates(), strict=True))
        return [{"params": list(part.parameters.values()), "lr": rates[name]} for name, part in self._parts.items()]

    def before_step(self) -> None:
        if self.tokens is not None:
            self.tokens.before_step()

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Run after the optimizer step `step` (from 0): restore constraints and update the moving average."""
        if self.tokens is not None:
            self.tokens.after_step()
        if self.average:
            decay = min(self.settings.ema_decay, (step + 1) / (step + 10))  # early on, the average must not remember the start
            get_ema_multi_avg_fn(decay)(self.average, [parameter.detach() for parameter in self.parameters.values()], step)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the parameters hold the moving average, if there is one."""
        now = [parameter.detach().clone() for parameter in self.parameters.values()] if self.average else []
        with torch.no_grad():
            for parameter, value in zip(self.parameters.values(), self.average, strict=False):
                parameter.copy_(value)
            if self.average and self.tokens is not None:
                self.tokens.after_step()  # the mean of directions is shorter than they are
            try:
                yield
            finally:
                for parameter, value in zip(self.parameters.values(), now, strict=False):
                    parameter.copy_(value)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within it network and text encoder are the base's again."""
        with ExitStack() as stack:
            for part in (self.network, self.text):
                if part is not None:
                    stack.enter_context(part.disabled())
            yield

    def lora(self) -> dict[str, torch.Tensor]:
        """What was learned on network and text encoder, under core's LORA_MODEL names."""
        return {**(self.network.lora() if self.network else {}), **(self.text.lora() if self.text else {})}

    def learned_tokens(self, metadata: dict[str, str]) -> list[LearnedToken]:
        return self.tokens.learned(metadata) if self.tokens else []

    def state(self) -> dict:
        return {
            "parameters": {name: parameter.detach().cpu() for name, parameter in self.parameters.items()},
            "average": [value.cpu() for value in self.average],
        }

    @torch.no_grad()
    def restore(self, state: dict) -> None:
        for name, parameter in self.parameters.items():
            parameter.copy_(state["parameters"][name])
        for value, saved in zip(self.average, state["average"], strict=True):
            value.copy_(saved)


def _adapter(network, settings: TrainSettings, targets: str, **more) -> Adapter:
    return attach_adapter(network, settings.adapter, settings.rank, settings.alpha or float(settings.rank), targets, settings.seed, **more)


def _rows(settings: TrainSettings, denoiser, clip: Clip) -> str:
    """The setting `rows`, or ALL where the model has no layers that could be limited to them."""
    if settings.token_rows == ALL:
        return ALL
    adapted = target_layers(denoiser.network, settings.targets) if settings.how.network == "adapter" else dict(denoiser.network.named_modules())
    if text_rows.knows_rows(clip) and any(is_text_layer(denoiser.network, name) for name in adapted):
        return settings.token_rows
    log.info("Kindred: none of the trained layers reads the text alone, so they act on every prompt, as with rows = 'all'.")
    return ALL


def _limited(denoiser, rows: str) -> Callable[[str], bool] | None:
    return None if rows == ALL else functools.partial(is_text_layer, denoiser.network)


NETWORKS: dict[str, Callable[..., Adapter]] = {  # what `Method.network` names: (denoiser, settings, rows) -> adapter
    "kv": lambda denoiser, settings, rows: (WeightDifference if rows == ALL else TokenRowsDifference)(denoiser.network, device=denoiser.device),
    "adapter": lambda denoiser, settings, rows: _adapter(
        denoiser.network, settings, settings.targets, device=denoiser.device, limited=_limited(denoiser, rows)
    ),
}
implemented({method.network for method in METHODS.values() if method.network}, NETWORKS, "training/methods.py")


def _text(name) -> str:
    return name if isinstance(name, str) else "/".join(name)
