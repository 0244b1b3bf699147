"""What moves the weights: optimizers of the field's libraries, and their learning rates over the run."""

from __future__ import annotations

import importlib

import torch

from .settings import TrainSettings

_PACKAGES = {"AdamW 8-bit": "bitsandbytes", "Prodigy": "prodigyopt"}


def check_optimizer(settings: TrainSettings) -> None:
    """ValueError with the package's name where the optimizer's is not installed: nothing is installed while ComfyUI runs."""
    if settings.optimizer in _PACKAGES:
        _package(settings.optimizer)


def make_optimizer(settings: TrainSettings, groups: list[dict]) -> torch.optim.Optimizer:
    """The optimizer of `settings` over parameter groups that carry their own learning rate. ValueError where it cannot work with them."""
    decay = settings.weight_decay
    cuda = any(parameter.is_cuda for group in groups for parameter in group["params"])
    if settings.optimizer == "AdamW":
        return torch.optim.AdamW(groups, weight_decay=decay, fused=cuda or None)
    if settings.optimizer == "AdamW 8-bit":
        if not cuda:
            raise ValueError("optimizer 'AdamW 8-bit' needs a CUDA card. Choose 'AdamW'.")
        return _package(settings.optimizer).optim.AdamW8bit(groups, weight_decay=decay)
    if settings.optimizer == "Prodigy":
        rates = {group["lr"] for group in groups}
        if len(rates) > 1:
            raise ValueError(
                f"optimizer 'Prodigy' finds one rate for all that is learned; it cannot work with the {len(rates)} different learning rates {sorted(rates)}. Set all of them to 0."
            )
        return _package(settings.optimizer).Prodigy(groups, weight_decay=decay, safeguard_warmup=True, use_bias_correction=True)
    from transformers.optimization import Adafactor

    # The rates are ours, as in the usual fine-tuning recipe: no relative steps, no scaling by the parameter.
    return Adafactor(groups, weight_decay=decay, scale_parameter=False, relative_step=False, warmup_init=False)


def make_schedule(settings: TrainSettings, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Warm-up, then the schedule of `settings`, by transformers' library."""
    from transformers.optimization import get_scheduler

    names = {"constant": "constant_with_warmup", "cosine with restarts": "cosine_with_restarts"}
    specific = {"num_cycles": 3} if settings.schedule == "cosine with restarts" else None
    return get_scheduler(names.get(settings.schedule, settings.schedule), optimizer, settings.warmup_steps, settings.steps, scheduler_specific_kwargs=specific)


def _package(optimizer: str):
    name = _PACKAGES[optimizer]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"optimizer {optimizer!r} needs the Python package {name}, which is not installed in ComfyUI's environment. Install it (pip install {name}), or choose 'AdamW'."
        ) from error
