"""The report of rows.py: a table of every training and number of steps, and frontiers of prompt fidelity against likeness."""

from __future__ import annotations

import datetime
import itertools
import platform
import sys
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "dev" / "demo"))

from base.rooms import load  # noqa: E402
from evidence_report import _Axes  # noqa: E402

bootstrap, canvas = load("evaluation.bootstrap"), load("evaluation.canvas")
BASELINE = "all, SPL 0"
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#5a5a60")  # Okabe and Ito's, for all eyes
FRONTIERS = {
    "rows": ("all, SPL 0", "token, SPL 0", "token alone, SPL 0", "token and all behind, SPL 0", "token and end, SPL 0"),
    "spl": ("all, SPL 0", "all, SPL 1", "token, SPL 0", "token, SPL 1", "token and end, SPL 0"),
}


def write(entries: list[dict], folder: Path = ROOT / "dev" / "bench") -> Path | None:
    """dev/bench/rows.md and dev/bench/rows/*.png; None, and a line on the terminal, without results."""
    found: dict[str, dict[int, dict[tuple, dict]]] = {}
    for entry in entries:
        found.setdefault(entry["training"], {}).setdefault(entry["step"], {})[entry["subject"], entry["seed"], entry["prompts"]] = entry
    if BASELINE not in found:
        print(f"rows: there are no results of {BASELINE!r} yet; run without --report.")
        return None
    runs = {run for by_step in found.values() for by_run in by_step.values() for run in by_run}
    lines = [
        "# Token rows on the miniature world",
        "",
        f"{datetime.date.today().isoformat()}, {platform.machine()}, torch {torch.__version__}, CPU; made by `python dev/bench/rows.py`. **Exploratory: the defaults are chosen by it.**",
        f"{len({run[0] for run in runs})} subjects, {len({run[1] for run in runs})} seed(s), {' or '.join(map(str, sorted({run[2] for run in runs})))} prompts each; "
        "guidance scale 2.5, 8 sampling steps, batch 4, the evidence's rates (1e-3 and 5e-2).",
        "",
        "Prompt: share of class, accessory and place that the judge sees. Likeness: cosine with the five photos. Leak: likeness of the class prompt's pictures",
        "(half of the prompts, with the class word alone), less that of the base model's. Same: share of these pictures that are the base model's, bit for bit.",
        f"Drift: 1 - cosine of the token's prompt with the class word's. The last two columns are differences to `{BASELINE}` at the same number of steps, over the",
        "subjects and prompts that both have; 95% intervals of a bootstrap over subjects. **Bold** where the interval does not hold zero.",
        "",
        *(f"![Frontiers: {name}](rows/{name}.png)\n" for name in FRONTIERS),
        "| training | steps | subjects | prompts | prompt | likeness | leak | same | drift | prompt, difference | likeness, difference |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for training, by_step in found.items():
        for step, by_run in sorted(by_step.items()):
            most = max(run[2] for run in by_run)  # a run with fewer prompts is an earlier one of the same subject
            by_run = {run: entry for run, entry in by_run.items() if run[2] == most}
            means = [_mean(by_run, name).value for name in ("prompt", "likeness", "leak", "same")]
            drift = sum(entry["drift"] for entry in by_run.values()) / len(by_run)
            changes = ["", ""] if training == BASELINE else [_change(by_run, found[BASELINE].get(step, {}), name) for name in ("prompt", "likeness")]
            numbers = f"{means[0]:.2f}", f"{means[1]:.2f}", f"{means[2]:+.2f}", f"{means[3]:.0%}", f"{drift:.3f}"
            lines.append("| " + " | ".join([training, str(step), str(len(by_run)), str(most), *numbers, *changes]) + " |")
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    for name, trainings in FRONTIERS.items():
        pixels = (_frontier(found, [one for one in trainings if one in found])[0] * 255).round().byte().numpy()
        Image.fromarray(pixels).quantize(64).save(folder / "rows" / f"{name}.png", optimize=True)
    path = folder / "rows.md"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    print(f"rows: {path}")
    return path


def _mean(by_run: dict[tuple, dict], name: str):
    pairs = [(float(value), run) for run, entry in by_run.items() for value in entry[name]]
    return bootstrap.mean([value for value, _ in pairs], [run for _, run in pairs])


def _change(by_run: dict[tuple, dict], base: dict[tuple, dict], name: str) -> str:
    both = by_run.keys() & base.keys()
    if not both:
        return ""
    pairs = [(after - before, run) for run in sorted(both) for after, before in zip(by_run[run][name], base[run][name], strict=True)]
    interval = bootstrap.mean([value for value, _ in pairs], [run for _, run in pairs])
    text = f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"
    return f"**{text}**" if interval.low > 0 or interval.high < 0 else text


def _frontier(found: dict, trainings: list[str]) -> torch.Tensor:
    """Prompt fidelity over likeness: a line a training, a dot for each number of steps; up and to the right is better. All over the same subjects."""
    shared = set.intersection(*(set(by_run) for training in trainings for by_run in found[training].values()))
    most = max((run[2] for run in shared), default=0)
    shared = {run for run in shared if run[2] == most}
    points = {}
    for training in trainings:
        kept = {step: {run: by_run[run] for run in shared} for step, by_run in sorted(found[training].items())}
        points[training] = [(_mean(by_run, "likeness").value, _mean(by_run, "prompt").value, step) for step, by_run in kept.items()] if shared else []
    board = canvas.Canvas(1100, 640, canvas.THEMES["light"])
    xs, ys = ([point[at] for some in points.values() for point in some] or [0.0, 1.0] for at in (0, 1))
    axes = _Axes(board, (330, 24, 1060, 616), f"prompt fidelity over likeness, {len(shared)} subjects", xs, ys, "likeness")
    for index, (training, some) in enumerate(points.items()):
        colour = COLOURS[index]
        board.dot(38, 60 + 40 * index, 8, colour)
        board.text(56, 60 + 40 * index, training, 20, anchor="lm")
        for (x0, y0, _), (x1, y1, _) in itertools.pairwise(some):
            board.line(axes.x(x0), axes.y(y0), axes.x(x1), axes.y(y1), colour, 3)
        for x, y, step in some:
            board.dot(axes.x(x), axes.y(y), 7, colour, board.theme.panel)
            board.text(axes.x(x) + 10, axes.y(y) - 8, str(step), 17, board.theme.faint)
    return board.tensor()
