"""Paired, alternating measurements: what several ways of doing one thing cost, against one of them.

    ways = {"CFG": lambda: sample(plain), "ours": lambda: sample(guided)}
    table = measure(ways, baseline="CFG", rounds=7, device=torch.device("cpu"))
    print(table.markdown("Sampling, 20 steps"))

In each round every way runs once, in an order drawn anew, and is compared with the baseline of the SAME round (or one of its own): a machine that slows down
for a while slows them all. Reported are medians of those ratios, and their middle half as the spread. A way may return a mapping of
further seconds that it measured itself ("first step", "set-up"): these are treated alike.
"""

from __future__ import annotations

import datetime
import gc
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

Way = Callable[[], Mapping[str, float] | None]
TOTAL = "total"


@dataclass
class Row:
    """One way: seconds by measure (one number a round), the ratios to the baseline of the same rounds, and the peak of memory in bytes."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    peak: int | None = None
    over: int | None = None  # the peak over that of the row's baseline


@dataclass
class Table:
    baseline: str
    rows: dict[str, Row]
    machine: str
    skipped: dict[str, str] = field(default_factory=dict)
    own: frozenset[str] = frozenset()  # the ways that had a baseline of their own

    def ratio(self, way: str, measure: str = TOTAL) -> float:
        """Median ratio of `way` to the baseline."""
        return statistics.median(self.rows[way].ratios[measure])

    def seconds(self, way: str, measure: str = TOTAL) -> float:
        return statistics.median(self.rows[way].seconds[measure])

    def markdown(self, title: str = "", measures: tuple[str, ...] | None = None) -> str:
        """The table, with date and machine beneath it, as it may stand in a README."""
        measures = measures or tuple(dict.fromkeys(name for row in self.rows.values() for name in row.seconds))
        base = self.rows[self.baseline]
        lines = [f"### {title}", ""] if title else []
        lines += ["| way | " + " | ".join(f"{name}" for name in measures) + " | peak memory |", "|---|" + "---|" * (len(measures) + 1)]
        for row in self.rows.values():
            cells = [_cell(row, base, measure) for measure in measures]
            lines.append(f"| {row.name} | " + " | ".join(cells) + f" | {_memory(row, row is base)} |")
        lines += [f"| {name} | " + "not run: " + reason + " |" * (len(measures) + 1) for name, reason in self.skipped.items()]
        method = f"Ratios are medians of {_rounds(base)} alternating rounds against {self.baseline!r} of the same round; in brackets the middle half."
        if self.own:
            method = method.replace(" of the same round", f" of the same round, {len(self.own)} of them against a baseline of their own beside them")
        return "\n".join([*lines, "", method, self.machine])


def measure(
    ways: dict[str, Way],
    baseline: str,
    rounds: int = 7,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    memory: bool = True,
    seed: int = 0,
    own: Mapping[str, Way] | None = None,
) -> Table:
    """Run all `ways` `rounds` times in alternation. ValueError where `baseline` is not one of them.

    `own`: name of a way -> a baseline of its own, run right before or after it, where the common one would differ in more than what is
    measured (other weights in other places of the memory are up to 10% faster or slower). It has no row.
    Memory is taken in separate runs after the timed ones: what torch allocates in a run, at its peak.
    """
    if baseline not in ways:
        raise ValueError(f"The baseline {baseline!r} is not among the ways: {', '.join(ways)}.")
    device, own = torch.device(device), own or {}
    rows = {name: Row(name) for name in ways}
    order = random.Random(seed)
    for way in [*ways.values(), *own.values()]:
        for _ in range(warmup):
            way()
    for _ in range(rounds):
        names = list(ways)
        order.shuffle(names)
        taken, theirs = {}, {}
        for name in names:
            pair = [(taken, ways[name])] + ([(theirs, own[name])] if name in own else [])
            order.shuffle(pair)
            for into, way in pair:
                into[name] = _once(way, device)
        for name, seconds in taken.items():
            base = theirs.get(name, taken[baseline])
            for measure_, value in seconds.items():
                rows[name].seconds.setdefault(measure_, []).append(value)
                if base.get(measure_):
                    rows[name].ratios.setdefault(measure_, []).append(value / base[measure_])
    if memory:
        for name in [baseline, *(name for name in ways if name != baseline)]:
            peak = rows[name].peak = peak_memory(ways[name], device)
            before = peak_memory(own[name], device) if name in own else rows[baseline].peak
            assert before is not None  # the baseline comes first
            rows[name].over = peak - before
    return Table(baseline, rows, machine_line(device), own=frozenset(own))


def machine_line(device: torch.device | str = "cpu") -> str:
    """Date and machine, one line."""
    device = torch.device(device)
    if device.type == "cuda":
        what = torch.cuda.get_device_name(device)
    else:
        clock_ = "processor time" if _single(device) else "wall time"
        what = f"{clock_} on {_processor()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)} of {os.cpu_count()} cores, no GPU"
    return f"{datetime.date.today().isoformat()}; {what}; {platform.system()}, Python {platform.python_version()}, torch {torch.__version__}."


def gpu() -> torch.device | None:
    """The GPU to measure on, or None (then say that the part was skipped)."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else None


def peak_memory(way: Way, device: torch.device) -> int:
    """Bytes that torch allocates in one run of `way`, at its peak, over what there was before: by the allocator on CUDA, else by the profiler's log of it."""
    way()  # what it loads once is not part of its run
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        way()
    now_, peak = 0, 0
    for event in _allocations(profile):
        now_ += event.nbytes()
        peak = max(peak, now_)
    return peak


def _allocations(profile: Any) -> list:
    """torch's own log, which it gives no types."""
    return sorted((one for one in profile.profiler.kineto_results.events() if one.name() == "[memory]"), key=lambda one: one.start_ns())


@contextmanager
def clock(into: dict[str, float], name: str, device: torch.device | str = "cpu"):
    """Add the seconds that the block takes to `into[name]`."""
    start = now(device)
    try:
        yield
    finally:
        into[name] = into.get(name, 0.0) + now(device) - start


def now(device: torch.device | str = "cpu") -> float:
    """Seconds on the clock that suits the device, once all its work is done.

    One thread on the CPU is timed by the processor time of this process, which others on the machine hardly disturb; else the wall's.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if _single(device) else time.perf_counter()


def _single(device: torch.device) -> bool:
    return device.type == "cpu" and torch.get_num_threads() == 1


def _once(way: Way, device: torch.device) -> dict[str, float]:
    gc.collect()
    seconds: dict[str, float] = {}
    with clock(seconds, TOTAL, device):
        more = way()
    return {**seconds, **(more or {})}


def _cell(row: Row, base: Row, measure: str) -> str:
    if measure not in row.seconds:
        return ""
    seconds = statistics.median(row.seconds[measure])
    told = f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
    ratios = row.ratios.get(measure)
    if row is base or not ratios:
        return told
    spread = f" ({_quantile(ratios, 0.25):.2f} to {_quantile(ratios, 0.75):.2f})" if len(ratios) > 2 else ""
    return f"{statistics.median(ratios):.2f}x{spread}, {told}"


def _quantile(values: list[float], share: float) -> float:
    values = sorted(values)
    place = share * (len(values) - 1)
    low = int(place)
    return values[low] + (values[min(low + 1, len(values) - 1)] - values[low]) * (place - low)


def _memory(row: Row, is_base: bool) -> str:
    if row.peak is None or row.over is None:
        return ""
    megabytes = f"{row.peak / 2**20:,.1f} MB"
    return megabytes if is_base else f"{megabytes} ({row.over / 2**20:+,.1f})"


def _rounds(row: Row) -> int:
    return len(next(iter(row.seconds.values()), []))


def _processor() -> str:
    try:
        names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return names[0] if names else platform.machine()
    except OSError:
        return platform.processor() or platform.machine()
