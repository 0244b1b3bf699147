"""Token rows against plain K/V tuning on the miniature world: which rows, how much SPL, how many vectors, how many steps. Resumable.

    python dev/bench/rows.py --work FOLDER [--subjects 8] [--seeds 2] [--prompts 24] [--processes 2] [--only PATTERN]
    python dev/bench/rows.py --work FOLDER --report        # tables and charts of what is there, without running anything

For each subject, seed and training: pictures of the prompts with the token, and of half of these prompts with the class word instead.
The judge gives prompt fidelity (class, accessory and place that are right), likeness to the photos, leak (likeness of the class prompt's pictures, less that
of the base model's), and agreement (share of the class prompt's pictures that are the base model's, bit for bit). One line for each training and number of
steps goes to FOLDER/rows.jsonl; what stands there is not done again. Exploratory: the defaults are chosen by it.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "dev" / "bench"))

from evidence import COMMON, KV, LORA, SUBJECTS, entries  # noqa: E402
from lab import Lab, Way  # noqa: E402
from processor import KEEP_MEMORY  # noqa: E402

RESULTS = ROOT / "dev" / "bench" / "rows" / "results.jsonl.xz"
STEPS, SAMPLING = (40, 80, 160), 8
WAY = Way(cfg=2.5)  # of the guidance scales tried, the one at which plain tuning is best
LOW_RANK = {**LORA, "targets": "text", "train_text_encoder": False}


def trainings() -> dict[str, dict]:
    """Name -> settings, the most telling first: a run that is stopped early has compared what matters."""
    found = {}
    for spl in (0.0, 1.0, 0.1, 10.0):
        for rows in ("all", "token", "token alone", "token and all behind", "token and end"):
            found[f"{rows}, SPL {spl:g}"] = {**KV, "rows": rows, "spl_weight": spl}
    for vectors in (2, 4):
        for rows in ("all", "token"):
            for spl in (0.0, 1.0):
                found[f"{rows}, SPL {spl:g}, {vectors} vectors"] = {**KV, "rows": rows, "spl_weight": spl, "vectors": vectors}
    for rows in ("all", "token"):
        for spl in (0.0, 1.0):
            found[f"{rows}, SPL {spl:g}, low rank"] = {**LOW_RANK, "rows": rows, "spl_weight": spl}
    for factor in (0.3, 3.0):
        rates = {"learning_rate": KV["learning_rate"] * factor, "token_learning_rate": KV["token_learning_rate"] * factor}
        for rows in ("all", "token"):
            found[f"{rows}, SPL 1, rates x {factor:g}"] = {**KV, **rates, "rows": rows, "spl_weight": 1.0}
    return found


def run(options) -> None:
    if options.processes > 1:
        own = [sys.executable, *sys.argv, "--processes", "1"]
        workers = [subprocess.Popen([*own, "--share", f"{index}/{options.processes}"], env={**KEEP_MEMORY, **os.environ}) for index in range(options.processes)]
        codes = [worker.wait() for worker in workers]  # of every one
        if any(codes):
            raise SystemExit("rows: a process failed (its words are above). Start the same command again: what is done stays done.")
        return
    log, (index, of) = options.work / "rows.jsonl", map(int, options.share.split("/"))
    done = {(entry["subject"], entry["seed"], entry["training"], entry["prompts"]) for entry in entries(log)}
    lab, began = Lab(None, 1, SAMPLING), time.monotonic()
    wanted = [(seed, name, subject) for seed in range(1, options.seeds + 1) for name in trainings() for subject in SUBJECTS[: options.subjects]]
    for seed, name, subject in [one for one in wanted if re.fullmatch(options.only, one[1])][index::of]:
        if (subject, seed, name, options.prompts) in done:
            continue
        lines = cells(lab, subject, seed, name, options.prompts)
        with log.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
        print(f"{(time.monotonic() - began) / 60:5.1f} min  seed {seed}  {subject:9}{name}", flush=True)


def cells(lab: Lab, subject: str, seed: int, name: str, count: int) -> list[dict]:
    """One line for each number of steps of a training."""
    prompts = lab.prompts(subject, count, seed=seed)
    of_class, noise = [replace(prompt, text=prompt.class_text) for prompt in prompts[::2]], 1000 + seed
    base = lab.draw(None, of_class, WAY, seed=noise)
    before = lab.score(base, subject, of_class)["subject"]
    tuned = lab.learn(subject, STEPS[:-1], **{**COMMON, **trainings()[name], "steps": STEPS[-1], "seed": seed})
    lines = []
    for step in STEPS:
        scores = lab.score(lab.draw(tuned[step], prompts, WAY, seed=noise), subject, prompts)
        drawn = lab.draw(tuned[step], of_class, WAY, seed=noise)
        leaked = lab.score(drawn, subject, of_class)["subject"]
        values = {
            "prompt": [round(value, 3) for value in scores["prompt"]],
            "likeness": [round(value, 3) for value in scores["subject"]],
            "leak": [round(after - first, 3) for after, first in zip(leaked, before, strict=True)],
            "same": [bool((one == other).all()) for one, other in zip(drawn, base, strict=True)],
        }
        about = {"subject": subject, "seed": seed, "training": name, "prompts": count, "step": step}
        lines.append({**about, "drift": round(tuned[step].drift, 4), "precision": lab.precision, **values})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where the results are kept")
    parser.add_argument("--subjects", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="side by side, about 2 GB each (default: one for each core)")
    parser.add_argument(
        "--only", default=".*", metavar="PATTERN", help='trainings whose whole name this regular expression matches, such as "(all|token), SPL (0|1)"'
    )
    parser.add_argument("--share", default="0/1", help=argparse.SUPPRESS)
    parser.add_argument("--report", action="store_true", help="only write the report of what is there")
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    log = options.work / "rows.jsonl"
    if RESULTS.is_file() and not log.is_file():
        log.write_bytes(lzma.decompress(RESULTS.read_bytes()))
    if not options.report:
        run(options)
    import rows_report

    rows_report.write(entries(log))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_bytes(lzma.compress(log.read_bytes(), preset=9))


if __name__ == "__main__":
    main()
