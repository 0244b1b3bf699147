"""The evidence's tables and plots. Every mean and every difference has a 95% interval whose bootstrap draws whole trainings (subject x seed)."""

from __future__ import annotations

import datetime
import itertools
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "dev" / "demo"))

from base.rooms import load  # noqa: E402

bootstrap, canvas = load("evaluation.bootstrap"), load("evaluation.canvas")
TITLES = {
    "a": "Plain K/V + token tuning against step count, and with SPL",
    "b": "LoRA: Personalization Guidance: omega and guidance scale, against AutoGuidance",
    "c": "LoRA: Test-time Embedding Adjustment: rotation, norm, level, auto alpha",
    "d": "K/V + token: all three together, each alone, and the rivals",
}
MEASURES = {"prompt": "prompt fidelity", "subject": "subject fidelity"}


class Results:
    """The scores by cell key, over the trainings (subject, seed) for which every cell is there. A seed counts when it is there for all subjects."""

    def __init__(self, entries: list[dict], keys: Sequence[str]):
        found: dict[tuple, dict[str, dict]] = {}
        for entry in entries:
            found.setdefault((entry["subject"], entry["seed"], entry["prompts"]), {})[entry["key"]] = entry
        whole = {run: by_key for run, by_key in found.items() if all(key in by_key for key in keys)}
        subjects = Counter(run[1:] for run in whole)  # of each seed
        most = max(subjects.values(), default=0)
        self.runs = {run: by_key for run, by_key in whole.items() if subjects[run[1:]] == most}
        self.left_out = len(found) - len(self.runs)

    def values(self, key: str, measure: str) -> tuple[list[float], list[tuple]]:
        """Every picture's score, and which training it is of."""
        pairs = [(value, run) for run, by_key in self.runs.items() for value in by_key[key]["scores"][measure]]
        return [value for value, _ in pairs], [run for _, run in pairs]

    def mean(self, key: str, measure: str):
        return bootstrap.mean(*self.values(key, measure))

    def difference(self, key: str, base: str, measure: str):
        after, groups = self.values(key, measure)
        before, _ = self.values(base, measure)
        return bootstrap.mean([a - b for a, b in zip(after, before, strict=True)], groups)

    def in_half(self) -> float:
        """The share of the results that were trained and drawn in bfloat16."""
        precisions = [entry.get("precision") for by_key in self.runs.values() for entry in by_key.values()]
        return precisions.count("bf16") / len(precisions)

    def drift(self, key: str) -> float:
        return sum(by_key[key]["drift"] for by_key in self.runs.values()) / len(self.runs)


def write(entries: list[dict], cells: list, steps: int, commit: str, folder: Path = ROOT / "dev" / "bench") -> Path | None:
    """dev/bench/evidence.md and dev/bench/evidence/*.png; None, and a line on the terminal, while no training has all its cells."""
    results = Results(entries, [cell.key() for cell in cells])
    if not results.runs:
        print("evidence: no subject has all its cells yet; run without --report.")
        return None
    base = {cell.section: cell for cell in cells if cell.baseline}
    subjects, seeds = sorted({run[0] for run in results.runs}), sorted({run[1] for run in results.runs})
    prompts = sorted({run[2] for run in results.runs})
    lines = [
        "# Evidence from the miniature world",
        "",
        f"{datetime.date.today().isoformat()}, commit {commit}, {platform.machine()}, torch {torch.__version__}, CPU; made by `python dev/bench/evidence.py`.",
        f"**{len(results.runs)} trainings a setting: {len(subjects)} subjects ({', '.join(subjects)}) x {len(seeds)} seed{'s' * (len(seeds) > 1)}, "
        f"{' or '.join(map(str, prompts))} prompts each, {len(results.values(base['d'].key(), 'prompt')[0])} pictures a row.** The full protocol is 6 subjects x 3 seeds x 24 prompts.",
        "",
        "Prompt fidelity: share of class, accessory and place of the prompt that the judge sees. Subject fidelity: mean cosine of the judge's identity vectors",
        "with the five photos'. Intervals are 95%; the bootstrap draws whole trainings, and with so few of them it is rather too narrow than too wide.",
        f"Drift is 1 - cosine of the token's prompt with the class word's. Trainings have {steps} steps; guidance is 5 where nothing else is said. Differences are",
        "to the section's baseline (marked), picture by picture from the same noise. **Bold** where the interval does not hold zero.",
        "TEA at the level of the prompt lets each word meet its own; by position, the words behind `<v1> dog` meet their neighbours of the shorter class prompt.",
        f"{results.in_half():.0%} of the results come from processors that compute in bfloat16, the others from float32; what a section compares within a training is of one kind.",
        *([f"Left out, because their seed is not whole yet: {results.left_out} trainings."] if results.left_out else []),
    ]
    for section, title in TITLES.items():
        lines += [
            "",
            f"## {section}. {title}",
            "",
            f"![{title}](evidence/{section}.png)",
            "",
            *_table([c for c in cells if c.section == section], results, base[section].key()),
        ]
    (folder / "evidence").mkdir(parents=True, exist_ok=True)
    for section, plot in _plots(cells, results).items():
        pixels = (plot[0] * 255).round().byte().numpy()
        Image.fromarray(pixels).quantize(64).save(folder / "evidence" / f"{section}.png", optimize=True)
    path = folder / "evidence.md"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    print(f"evidence: {path}")
    return path


def _table(cells: list, results: Results, base: str) -> list[str]:
    lines = [
        "| | prompt fidelity | class | accessory | place | subject fidelity | drift | prompt, against the baseline | subject, against the baseline |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        key = cell.key()
        parts = [f"{results.mean(key, name).value:.2f}" for name in ("class", "accessory", "place")]
        changes = ["" if key == base else _change(results.difference(key, base, name)) for name in MEASURES]
        name = f"{cell.name} (baseline)" if cell.baseline else cell.name
        means = str(results.mean(key, "prompt")), *parts, str(results.mean(key, "subject")), f"{results.drift(key):.3f}"
        lines.append("| " + " | ".join([name, *means, *changes]) + " |")
    return lines


def _change(interval) -> str:
    text = f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
    return f"**{text}**" if interval.low > 0 or interval.high < 0 else text


# -- plots -------------------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT, MARGIN = 1100, 470, 40
Line = tuple[str, list[tuple[float, str]]]  # name, [(x, cell key)]


def _plots(cells: list, results: Results) -> dict[str, torch.Tensor]:
    def line(name: str, section: str, pick) -> Line:
        return name, [(x, cell.key()) for cell in cells if cell.section == section and (x := pick(cell)) is not None]

    steps = [line(name, "a", lambda c, name=name: c.step if c.training == name else None) for name in ("plain", "SPL 1")]
    omega = [line("guidance 5", "b", lambda c: c.way.omega if c.way.cfg == 5 and c.way.mode == "personalization" else None)]
    omega += [line(f"guidance {cfg:g}", "b", lambda c, cfg=cfg: c.way.omega if c.way.cfg == cfg else None) for cfg in (2.5, 7.5)]

    def turned(level: str, align: str = "token"):
        return lambda c: c.way.alpha if (c.way.level, c.way.align, c.way.norm) == (level, align, "midpoint") and c.way.alpha != "auto" else None

    alpha = [line("prompt level", "c", turned("prompt")), line("token level", "c", turned("token")), line("by position", "c", turned("prompt", "position"))]
    zero = next(cell.key() for cell in cells if cell.section == "c" and cell.baseline)
    for _, points in alpha[1:]:
        points.insert(0, (0.0, zero))  # the first line has it by itself
    return {
        "a": _curves("training steps", steps, results),
        "b": _curves("omega (1 = CFG, 0 = base model as the weak one)", omega, results),
        "c": _curves("alpha", alpha, results),
        "d": _forest([cell for cell in cells if cell.section == "d"], results),
    }


class _Axes:
    """One panel with its scales."""

    def __init__(self, board, box: tuple[float, float, float, float], title: str, xs: Sequence[float], ys: Sequence[float], label: str):
        self.board, (left, top, right, bottom) = board, box
        board.box(left, top, right, bottom, board.theme.panel, 14)
        board.text(left + 24, top + 36, title, 24)
        self.left, self.top, self.right, self.bottom = left + 70, top + 60, right - 24, bottom - 66
        (self.x0, self.x1), (self.y0, self.y1) = _room(xs), _room(ys)
        for tick in canvas.ticks(self.y0, self.y1, 5):
            board.line(self.left, self.y(tick), self.right, self.y(tick), board.theme.line, 1)
            board.text(self.left - 10, self.y(tick), f"{tick:.2f}", 19, board.theme.faint, "rm")
        for tick in canvas.ticks(self.x0, self.x1, 7):
            board.text(self.x(tick), self.bottom + 24, f"{tick:g}", 19, board.theme.faint, "ms")
        board.text((self.left + self.right) / 2, self.bottom + 52, label, 19, board.theme.faint, "ms")

    def x(self, value: float) -> float:
        return self.left + (value - self.x0) / (self.x1 - self.x0) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.y0) / (self.y1 - self.y0) * (self.bottom - self.top)


def _room(values: Sequence[float]) -> tuple[float, float]:
    room = (max(values) - min(values)) * 0.06 or 0.05
    return min(values) - room, max(values) + room


def _curves(label: str, lines: list[Line], results: Results) -> torch.Tensor:
    """Prompt and subject fidelity side by side over one axis, each line with its intervals."""
    board = canvas.Canvas(WIDTH, HEIGHT, canvas.THEMES["light"])
    x = MARGIN
    for index, (name, _) in enumerate(lines):
        colour = board.theme.series[index]
        board.dot(x + 8, 34, 8, colour)
        board.text(x + 26, 34, name, 22, anchor="lm")
        x += board.width_of(name, 22) + 62
    half = (WIDTH - 2 * MARGIN - 20) / 2
    for number, (measure, title) in enumerate(MEASURES.items()):
        found = [[(at, results.mean(key, measure)) for at, key in sorted(points)] for _, points in lines]
        ends = [value for points in found for _, i in points for value in (i.low, i.high)]
        left = MARGIN + number * (half + 20)
        axes = _Axes(board, (left, 62, left + half, HEIGHT - 24), title, [at for points in found for at, _ in points], ends, label)
        for index, points in enumerate(found):
            colour, aside = board.theme.series[index], (index - (len(found) - 1) / 2) * 5
            for (a, one), (b, two) in itertools.pairwise(points):
                board.line(axes.x(a) + aside, axes.y(one.value), axes.x(b) + aside, axes.y(two.value), colour, 3)
            for at, interval in points:
                board.line(axes.x(at) + aside, axes.y(interval.low), axes.x(at) + aside, axes.y(interval.high), colour, 1.5)
                board.dot(axes.x(at) + aside, axes.y(interval.value), 5, colour, board.theme.panel)
    return board.tensor()


def _forest(cells: list, results: Results) -> torch.Tensor:
    """What each method changes in both fidelities, picture by picture against the baseline: a row for each, with its intervals."""
    base = next(cell.key() for cell in cells if cell.baseline)
    rows, row, names = [cell for cell in cells if not cell.baseline], 38, 250
    board = canvas.Canvas(WIDTH, 150 + row * len(rows), canvas.THEMES["light"])
    half = (WIDTH - 2 * MARGIN - names - 20) / 2
    for index, cell in enumerate(rows):
        board.text(MARGIN, 90 + row * index, cell.name, 22, anchor="lm")
    for number, (measure, title) in enumerate(MEASURES.items()):
        found = [results.difference(cell.key(), base, measure) for cell in rows]
        x0, x1 = _room([0.0, *(end for i in found for end in (i.low, i.high))])
        left, bottom = MARGIN + names + number * (half + 20), board.size[1] - 20
        board.box(left, 16, left + half, bottom, board.theme.panel, 14)
        board.text(left + 20, 48, f"{title}, change", 22)
        place = lambda value, left=left, x0=x0, x1=x1: left + 20 + (value - x0) / (x1 - x0) * (half - 40)  # noqa: E731
        for tick in canvas.ticks(x0, x1, 5):
            board.line(place(tick), 68, place(tick), bottom - 38, board.theme.faint if tick == 0 else board.theme.line, 2 if tick == 0 else 1)
            board.text(place(tick), bottom - 14, f"{tick:+.2g}" if tick else "0", 19, board.theme.faint, "ms")
        for index, interval in enumerate(found):
            y, sure = 90 + row * index, interval.low > 0 or interval.high < 0
            colour = board.theme.series[2] if sure else board.theme.faint
            board.line(place(interval.low), y, place(interval.high), y, colour, 3)
            board.dot(place(interval.value), y, 5, colour, board.theme.panel)
    return board.tensor()
