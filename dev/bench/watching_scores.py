"""What previews, scores and the held-out loss cost a training, by pairs of runs with and without them.

    python dev/bench/watching_scores.py [--rounds 3] [--steps 200]

The miniature base and its judge, `lora + token` at 64 pixels with the settings' defaults otherwise. Each round trains without, with the held-out loss (the
defaults), and with previews every 100 steps and their scores as well, in turn; medians of the ratios of whole loops, and the share that a run tells itself.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
for place in ("tests/support", "dev/demo", "dev/bench"):
    sys.path.append(str(ROOT / place))

import harness  # noqa: E402
import lab as labs  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()

    lab = labs.Lab()
    from base import fidelity
    from world import subjects

    pack = lab.pack
    photos = torch.stack([labs._tensor(photo) for photo in subjects.photos("honey", labs.SIDE)])
    concept = pack("training.data.concept").make_concept([photos], "<v1>", subjects.SUBJECTS["honey"].class_word)
    settings = pack("training.settings").TrainSettings(method="lora + token", steps=options.steps, resolution=labs.SIDE, precision="fp32", augment=False)
    trainer, watching = pack("training.trainer"), pack("training.watching")
    watches = {"nothing": {"heldout_every": 0}, "held-out loss": {}, "and scored previews": {"preview_every": 100}}

    def timed(watch: dict) -> tuple[float, float]:
        """(seconds from the first step to the end, the share that the run tells)."""
        scoring = pack("training.scoring").Scoring([fidelity.PromptFidelity(lab.judge), fidelity.SubjectFidelity(lab.judge)])
        seen: list = []
        given = pack("training.settings").WatchSettings(**watch)
        looking = watching.make_watch(given, report=seen.append, scoring=scoring)
        marks: list[float] = []
        with tempfile.TemporaryDirectory() as place, torch.inference_mode():
            keeping = trainer.Keeping(Path(place), "bench", 100)
            trainer.train(lab.model, lab.clip, lab.vae, [concept], settings, lambda _: marks.append(time.process_time()), keeping=keeping, watch=looking)
            return time.process_time() - marks[0], seen[-1].share if seen else 0.0

    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in watches}
    for turn in range(options.rounds):
        for name in sorted(watches, reverse=bool(turn % 2)):
            rows[name].append(timed(watches[name]))
            print(f"{name}: {rows[name][-1][0]:.1f} s, told {rows[name][-1][1]:.1%}", flush=True)
    alone = [seconds for seconds, _ in rows["nothing"]]
    print(f"a run of {options.steps} steps: {statistics.median(alone):.1f} s of processor time")
    for name, runs in rows.items():
        ratios = [seconds / other for (seconds, _), other in zip(runs, alone, strict=True)]
        told = statistics.median(share for _, share in runs)
        print(f"{name:<20} {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}), told {told:.1%}")
    print(harness.machine_line())


if __name__ == "__main__":
    main()
