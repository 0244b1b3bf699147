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

SMALLEST, LARGEST = 32, 640  # the smaller side of what Muon moves: first and last layers are vectors, and its cost grows with the cube


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


def fast_in_half(device: torch.device) -> bool:
    """Does the hardware compute in bfloat16? A processor without AVX-512 or AMX emulates it, four times slower than single precision."""
    return device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the hardware computes with it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=fast_in_half(device))


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


class Optimizers:
    """AdamW, and Muon (Jordan et al. 2024) for what is a matrix: kernels count as [out, in x height x width]. One step, one state for both.

    torch's Muon orthogonalises in bfloat16, which a processor without AVX-512 or AMX emulates slowly (see ``autocast``): there ``muon``
    had better be 0.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float, muon: float):
        fits = [p.ndim > 1 and SMALLEST <= min(p.shape[0], p[0].numel()) <= LARGEST for p in parameters]
        self.matrices = [p for p, fit in zip(parameters, fits, strict=True) if muon and fit]
        chosen = {id(p) for p in self.matrices}
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW([p for p in parameters if id(p) not in chosen], lr=lr, betas=betas, weight_decay=weight_decay)
        ]
        self.flat = [torch.nn.Parameter(_flat(p.detach())) for p in self.matrices]
        if any(f.data_ptr() != p.data_ptr() for f, p in zip(self.flat, self.matrices, strict=True)):
            raise ValueError("Muon needs kernels in channels_last or contiguous memory: their flat view must share it.")
        if self.flat:
            self.parts.append(torch.optim.Muon(self.flat, lr=muon, weight_decay=weight_decay, momentum=0.95, ns_steps=4, adjust_lr_fn="match_rms_adamw"))
        self.rates = [part.param_groups[0]["lr"] for part in self.parts]

    def scale(self, factor: float) -> None:
        for part, rate in zip(self.parts, self.rates, strict=True):
            part.param_groups[0]["lr"] = rate * factor

    def step(self) -> None:
        for flat, p in zip(self.flat, self.matrices, strict=True):
            flat.grad = None if p.grad is None else _flat(p.grad)
        for part in self.parts:
            part.step()

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def _flat(weight: torch.Tensor) -> torch.Tensor:
    """[out, in, ...] as a matrix in the order of its memory, so that no number is copied."""
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.permute(0, 2, 3, 1)
    return weight.flatten(1)


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
    muon: float = 0.0,
) -> None:
    """Trains the parameters of ``module`` that require gradients and leaves their averages in it.

    AdamW moves them; with ``muon`` (a learning rate) Muon moves the matrices and kernels, and AdamW the rest.

    ``loss(step)`` returns named losses; "loss" is the one that is minimised. State goes to ``work/<name>.state.pt`` every three
    minutes and on SIGTERM or SIGINT, the result to ``work/<name>.pt``. Raises FloatingPointError on a NaN before it can do harm.
    """
    final, saved = work / f"{name}.pt", work / f"{name}.state.pt"
    if final.is_file():
        module.load_state_dict(torch.load(final, weights_only=True, map_location="cpu"))
        return
    parameters = {key: p for key, p in module.named_parameters() if p.requires_grad}
    optimizer = Optimizers(list(parameters.values()), lr, betas, weight_decay, muon)
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
            optimizer.scale(schedule(step, steps))
            parts = loss(step)
            if not torch.isfinite(parts["loss"]):
                raise FloatingPointError(f"{name}: the loss is {parts['loss'].item()} at step {step}; the last good state is {saved}.")
            module.zero_grad(set_to_none=True)
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
