"""The evidence: what plain tuning breaks, and what each of the three cures mends, on the miniature world. Resumable.

    python dev/bench/evidence.py --work FOLDER [--subjects 6] [--seeds 1] [--prompts 8] [--processes 2]
    python dev/bench/evidence.py --work FOLDER --report        # tables and plots of what is there, without running anything

For each subject and seed: trainings (K/V and token, kept after several step counts; with SPL at five weights; DOP; direction-only tokens; a LoRA on UNet and
text encoder with a token, for guidance and TEA), then every way to draw the same prompts from the same noise. The judge says whether class, accessory and
place of the prompt are there (prompt fidelity) and how like the photos the subject is (subject fidelity). One line a cell goes to FOLDER/evidence.jsonl; what
stands there is not done again (`--start dev/bench/evidence/results.jsonl.xz` begins with the results of the report, and of a seed that is not whole yet).
The report is written to dev/bench/evidence.md and dev/bench/evidence/, and says what was run; the full protocol is `--seeds 3 --prompts 24`.
With `--checkpoint` the papers' own protocol runs on a real model instead: see papers.py.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "dev" / "bench"))

from lab import Lab, Way  # noqa: E402
from processor import KEEP_MEMORY  # noqa: E402

RESULTS = ROOT / "dev" / "bench" / "evidence" / "results.jsonl.xz"
SUBJECTS = ("biscuit", "mango", "honey", "clover", "bolt", "pepper", "marble", "bamboo")
STEPS, SAMPLING = 80, 8
SNAPSHOTS = (20, 40)
# The token starts from a rare word, as in ClassDiffusion, at rates that overfit in a minute: there is something to cure.
KV = {"method": "kv + token", "learning_rate": 1e-3, "token_learning_rate": 5e-2}
LORA = {
    "method": "lora + token",
    "learning_rate": 1e-3,
    "token_learning_rate": 5e-2,
    "text_learning_rate": 1e-3,
    "rank": 16,
    "targets": "attention + feed-forward",
    "train_text_encoder": True,
}
COMMON = {"steps": STEPS, "batch_size": 4, "spl_weight": 0.0, "initializer": "ktn"}
TRAININGS = {
    "plain": KV,
    **{f"SPL {weight:g}": {**KV, "spl_weight": weight} for weight in (0.01, 0.1, 1.0, 10.0, 100.0)},
    "DOP": {**KV, "preservation_weight": 1.0},
    "direction only": {**KV, "direction_only": True},
    "LoRA": LORA,
}


@dataclass(frozen=True)
class Cell:
    """One way to draw with one training after one number of steps. `section` is the part of the report that it belongs to."""

    section: str
    name: str
    training: str = "plain"
    step: int = STEPS
    way: Way = field(default_factory=Way)
    baseline: bool = False  # what the others of its section are compared with

    def key(self) -> str:
        return json.dumps([self.training, self.step, asdict(self.way)])


def cells() -> list[Cell]:
    found = [Cell("a", "base, class prompt", training="")]
    found += [Cell("a", f"plain, {step} steps", step=step, baseline=step == STEPS) for step in (*SNAPSHOTS, STEPS)]
    found += [Cell("a", f"SPL 1, {step} steps", "SPL 1", step) for step in SNAPSHOTS]
    found += [Cell("a", f"{name}, {STEPS} steps", name) for name in TRAININGS if name.startswith("SPL")]
    found += _guidance() + _turning()
    pg, tea, both = Way(omega=0.6), Way(alpha=0.2, align="token"), Way(omega=0.6, alpha=0.2, align="token")
    found += [Cell("d", "plain", baseline=True), Cell("d", "SPL", "SPL 1"), Cell("d", "PG", way=pg), Cell("d", "TEA", way=tea)]
    found += [Cell("d", "SPL + PG", "SPL 1", way=pg), Cell("d", "SPL + TEA", "SPL 1", way=tea), Cell("d", "PG + TEA", way=both)]
    found += [Cell("d", "all three", "SPL 1", way=both), Cell("d", "DOP", "DOP"), Cell("d", "direction only", "direction only")]
    # What plain tuning has made of the class word: what TEA turns toward.
    found += [Cell("d", "plain, its class prompt", way=Way(alpha=1.0, beta=1.0, norm="class", align="position"))]
    found += [Cell("d", "SPL 10", "SPL 10"), Cell("d", "SPL 10 + PG", "SPL 10", way=pg), Cell("d", "all three, SPL 10", "SPL 10", way=both)]
    return found


def _guidance() -> list[Cell]:
    ways = {f"omega {omega / 10:g}": Way(omega=omega / 10) for omega in range(10, -1, -1)}
    ways |= {f"guidance {cfg:g}, omega {omega:g}": Way(omega=omega, cfg=cfg) for cfg in (2.5, 7.5) for omega in (1.0, 0.6, 0.0)}
    ways |= {f"AutoGuidance {scale:g}": Way(mode="autoguidance", omega=0.0, scale=scale) for scale in (0.5, 1.0)}
    return [Cell("b", name, "LoRA", way=way, baseline=way == Way()) for name, way in ways.items()]


def _turning() -> list[Cell]:
    alphas = (0.1, 0.2, 0.3, 0.4, 0.5)
    plain = Way(align="token")  # drawn once more, by the training that the others of this section are drawn with
    ways = {"alpha 0": plain}
    ways |= {f"prompt, alpha {alpha:g}": replace(plain, alpha=alpha) for alpha in alphas}
    ways |= {f"prompt, alpha {alpha:g}, norm class 1": replace(plain, alpha=alpha, norm="class", beta=1.0) for alpha in (0.2, 0.4)}
    ways |= {f"prompt, alpha {alpha:g}, by position": replace(plain, alpha=alpha, align="position") for alpha in (0.2, 0.4)}
    ways |= {f"token, alpha {alpha:g}": replace(plain, alpha=alpha, level="token") for alpha in alphas}
    ways |= {"prompt, auto alpha": replace(plain, alpha="auto")}
    return [Cell("c", name, "LoRA", way=way, baseline=way == plain) for name, way in ways.items()]


def run(options) -> None:
    """Everything that is not in the results yet, in processes that take the trainings in turn; seed by seed, so that a stopped run has whole subjects."""
    if options.processes > 1:
        own = [sys.executable, *sys.argv, "--processes", "1", "--threads", str(options.threads)]
        workers = [subprocess.Popen([*own, "--share", f"{index}/{options.processes}"], env={**KEEP_MEMORY, **os.environ}) for index in range(options.processes)]
        codes = [worker.wait() for worker in workers]  # of every one
        if any(codes):
            raise SystemExit("evidence: a process failed (its words are above). Start the same command again: what is done stays done.")
        return
    log, (index, of) = options.work / "evidence.jsonl", map(int, options.share.split("/"))
    done = {(entry["subject"], entry["seed"], entry["key"], entry["prompts"]) for entry in entries(log)}
    wanted = {cell.key(): cell for cell in cells()}  # a cell of two sections is drawn once
    lab, began = None, time.monotonic()
    for subject, seed in [(subject, seed) for seed in range(1, options.seeds + 1) for subject in SUBJECTS[: options.subjects]][index::of]:
        missing = [cell for key, cell in wanted.items() if (subject, seed, key, options.prompts) not in done]
        if not missing:
            continue
        lab = lab or Lab(options.base, options.threads, SAMPLING)
        prompts = lab.prompts(subject, options.prompts, seed=seed)
        for training in dict.fromkeys(cell.training for cell in missing):
            tuned = learned(lab, subject, seed, training)
            for cell in (cell for cell in missing if cell.training == training):
                at = tuned.get(cell.step)
                scores = lab.score(lab.draw(at, prompts, cell.way, seed=1000 + seed), subject, prompts)
                entry = {"subject": subject, "seed": seed, "key": cell.key(), "prompts": options.prompts, "drift": round(at.drift, 4) if at else 0.0}
                entry["precision"] = lab.precision
                entry["scores"] = {name: [round(v, 3) for v in values] for name, values in scores.items()}
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(entry, separators=(",", ":")) + "\n")  # one short write: the processes do not tear each other's lines
            print(f"{(time.monotonic() - began) / 60:5.1f} min  seed {seed}  {subject:9}{training or 'base'}", flush=True)


def learned(lab: Lab, subject: str, seed: int, training: str) -> dict:
    if not training:
        return {}
    return lab.learn(subject, SNAPSHOTS, **{**COMMON, **TRAININGS[training], "seed": seed})


def entries(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.is_file() else []


def commit() -> str:
    found = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="where the results of the cells are kept")
    parser.add_argument("--base", type=Path, help="the expanded miniature base (default: the stored one)")
    parser.add_argument("--subjects", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="side by side, about 2 GB each (default: one for each core)")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--share", default="0/1", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=Path, metavar="FILE", help="results to go on from where FOLDER has none, such as dev/bench/evidence/results.jsonl.xz")
    parser.add_argument("--report", action="store_true", help="only write the report of what is there")
    real = parser.add_argument_group("the papers' protocol on a real model (see papers.py)")
    for name in ("checkpoint", "photos", "prompts-file", "clip", "dino", "blip2"):
        real.add_argument(f"--{name}", type=Path, metavar="PATH")
    real.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH") or ROOT / ".kindred" / "host" / "0.30.0")
    for name in ("side", "steps", "sampling-steps"):
        real.add_argument(f"--{name}", type=int, help="other than the papers', for a trial")
    options = parser.parse_args()
    options.work = options.work.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    options.base = options.base and options.base.resolve()
    if options.checkpoint:
        import papers

        if not (options.photos and options.prompts_file):
            parser.error("--checkpoint needs --photos and --prompts-file")
        return papers.main(options)
    log = options.work / "evidence.jsonl"
    if options.start and not log.is_file():
        log.write_bytes(lzma.decompress(options.start.read_bytes()))
    if not options.report:
        run(options)
    import evidence_report

    if evidence_report.write(entries(log), cells(), STEPS, commit()):
        RESULTS.write_bytes(lzma.compress(log.read_bytes(), preset=9))
    return None


if __name__ == "__main__":
    main()
