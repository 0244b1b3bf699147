"""One training loop for all four networks: resumable, with an exponential moving average and a log.

The batch of step i depends only on (seed, i), so a run that was killed and resumed sees what an uninterrupted one sees.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import torch


class Stopped(SystemExit):
    """The run was asked to stop and has saved its state; the same command goes on from there."""


class Log:
    """One JSON object a line: enough to draw every curve, small enough to commit."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, **entry) -> None:
        entry = {key: round(value, 5) if isinstance(value, float) else value for key, value in entry.items()}
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **entry})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(line, flush=True)


def save(state: dict, path: Path) -> None:
    """Writes beside, then renames: a kill leaves the old file or the new one."""
    beside = path.with_name(path.name + ".part")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def generator(seed: int, *where: object) -> torch.Generator:
    """The random stream of one place (a stage's name, a step): the same whenever it is asked for."""
    import hashlib

    digest = hashlib.sha256(repr((seed, *where)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def flat_then_linear(step: int, steps: int, warm: int = 50, flat: float = 0.5, last: float = 0.01) -> float:
    """Warm-up, a plateau for the first half, then a straight line down to ``last``."""
    if step < warm:
        return (step + 1) / warm
    return 1.0 if step < flat * steps else 1.0 - (1.0 - last) * (step - flat * steps) / max(1, steps - flat * steps)


def cosine(step: int, steps: int, warm: int = 50, last: float = 0.01) -> float:
    """Warm-up, then half a cosine down to ``last``."""
    if step < warm:
        return (step + 1) / warm
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def train(
    name: str,
    module: torch.nn.Module,
    loss: Callable[[int], dict[str, torch.Tensor]],
    steps: int,
    lr: float,
    work: Path,
    log: Log,
    schedule: Callable[[int, int], float] = cosine,
    ema: float = 0.998,
    weight_decay: float = 0.01,
    every: int = 50,
    betas: tuple[float, float] = (0.9, 0.99),
) -> None:
    """Trains the parameters of ``module`` that require gradients and leaves their averages in it.

    ``loss(step)`` returns named losses; "loss" is the one that is minimised. State goes to ``work/<name>.state.pt`` every three
    minutes and on SIGTERM or SIGINT, the result to ``work/<name>.pt``. Raises FloatingPointError on a NaN before it can do harm.
    """
    final, saved = work / f"{name}.pt", work / f"{name}.state.pt"
    if final.is_file():
        module.load_state_dict(torch.load(final, weights_only=True, map_location="cpu"))
        return
    parameters = {key: p for key, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, betas=betas, weight_decay=weight_decay)
    average = {key: p.detach().clone() for key, p in parameters.items()}
    start, spent = 0, 0.0
    if saved.is_file():
        state = torch.load(saved, weights_only=True, map_location="cpu")
        module.load_state_dict(state["module"], strict=False)
        optimizer.load_state_dict(state["optimizer"])
        average = {key: value.to(parameters[key].device) for key, value in state["average"].items()}
        start, spent = state["step"], state["seconds"]
        log.write(stage=name, resumed=start, steps=steps, steps_before=state["steps"])  # a new length changes the schedule: it must be seen
    asked: list[int] = []
    before = {number: signal.signal(number, lambda n, _: asked.append(n)) for number in (signal.SIGTERM, signal.SIGINT)}
    began = last_saved = time.monotonic()
    recent: dict[str, float] = {}

    def keep(step: int) -> None:
        module_state = {key: p.detach().cpu() for key, p in parameters.items()}
        seconds = spent + time.monotonic() - began
        save({"module": module_state, "optimizer": optimizer.state_dict(), "average": average, "step": step, "steps": steps, "seconds": seconds}, saved)

    try:
        for step in range(start, steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule(step, steps)
            parts = loss(step)
            if not torch.isfinite(parts["loss"]):
                raise FloatingPointError(f"{name}: the loss is {parts['loss'].item()} at step {step}; the last good state is {saved}.")
            optimizer.zero_grad(set_to_none=True)
            parts["loss"].backward()
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optimizer.step()
            decay = min(ema, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters.values()], 1 - decay)
            for key, value in parts.items():
                recent[key] = recent.get(key, value.item()) * 0.95 + value.item() * 0.05
            done = step + 1
            if done % every == 0 or done == steps:
                log.write(stage=name, step=done, seconds=round(spent + time.monotonic() - began, 1), **recent)
            if asked or time.monotonic() - last_saved > 180:
                keep(done)
                last_saved = time.monotonic()
            if asked:
                raise Stopped(f"{name}: stopped at step {done}, state saved in {saved}")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    with torch.no_grad():
        for key, value in average.items():
            parameters[key].copy_(value)
    save({key: value.detach().cpu() for key, value in module.state_dict().items()}, final)
    saved.unlink(missing_ok=True)
