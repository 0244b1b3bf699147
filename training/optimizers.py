"""Optimizers and learning rate schedules, from the field's libraries."""

from __future__ import annotations

import importlib

import torch

from .declare import implemented
from .settings import OPTIMIZERS, SCHEDULES, TrainSettings

_PACKAGES = {"AdamW 8-bit": "bitsandbytes", "Prodigy": "prodigyopt"}


def check_optimizer(settings: TrainSettings) -> None:
    """ValueError with the package's name where the optimizer's is not installed: nothing is installed while ComfyUI runs."""
    if settings.optimizer in _PACKAGES:
        _package(settings.optimizer)


def make_optimizer(settings: TrainSettings, groups: list[dict]) -> torch.optim.Optimizer:
    """The optimizer of `settings` over parameter groups that carry their own learning rate. ValueError where it cannot work with them."""
    return _MAKERS[settings.optimizer](groups, settings.weight_decay)


def _cuda(groups: list[dict]) -> bool:
    return any(parameter.is_cuda for group in groups for parameter in group["params"])


def _adamw(groups: list[dict], decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, weight_decay=decay, fused=_cuda(groups) or None)


def _adamw_8bit(groups: list[dict], decay: float) -> torch.optim.Optimizer:
    if not _cuda(groups):
        raise ValueError("optimizer 'AdamW 8-bit' needs a CUDA card. Choose 'AdamW'.")
    return _package("AdamW 8-bit").optim.AdamW8bit(groups, weight_decay=decay)


def _prodigy(groups: list[dict], decay: float) -> torch.optim.Optimizer:
    rates = {group["lr"] for group in groups}
    if len(rates) > 1:
        raise ValueError(
            f"optimizer 'Prodigy' finds one rate for all that is learned; it cannot work with the {len(rates)} different learning rates {sorted(rates)}. Set all of them to auto."
        )
    return _package("Prodigy").Prodigy(groups, weight_decay=decay, safeguard_warmup=True, use_bias_correction=True)


def _adafactor(groups: list[dict], decay: float) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    # The rates are ours, as in the usual fine-tuning recipe: no relative steps, no scaling by the parameter.
    return Adafactor(groups, weight_decay=decay, scale_parameter=False, relative_step=False, warmup_init=False)


_MAKERS = {"AdamW": _adamw, "AdamW 8-bit": _adamw_8bit, "Prodigy": _prodigy, "Adafactor": _adafactor}
implemented(OPTIMIZERS, _MAKERS, "the setting optimizer")

_SCHEDULERS = {  # ours -> (transformers' name, its own arguments)
    "constant": ("constant_with_warmup", None),
    "linear": ("linear", None),
    "cosine": ("cosine", None),
    "cosine with restarts": ("cosine_with_restarts", {"num_cycles": 3}),
}
implemented(SCHEDULES, _SCHEDULERS, "the setting schedule")


def make_schedule(settings: TrainSettings, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Warm-up, then the schedule of `settings`, by transformers' library."""
    from transformers.optimization import get_scheduler

    name, specific = _SCHEDULERS[settings.schedule]
    return get_scheduler(name, optimizer, settings.warmup_steps, settings.steps, scheduler_specific_kwargs=specific)


def set_rates(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, rates: list[float], decays: list[float]) -> None:
    """Give the groups of a restored optimizer these rates and decays, where the schedule stands. With those of before, no bit changes."""
    assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)  # transformers' schedules are
    schedule.base_lrs = list(rates)
    for group, rate, decay, factor in zip(optimizer.param_groups, rates, decays, schedule.lr_lambdas, strict=True):
        group.update(initial_lr=rate, weight_decay=decay, lr=rate * factor(schedule.last_epoch))
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]


def _package(optimizer: str):
    name = _PACKAGES[optimizer]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"optimizer {optimizer!r} needs the Python package {name}, which is not installed in ComfyUI's environment. Install it (pip install {name}), or choose 'AdamW'."
        ) from error
