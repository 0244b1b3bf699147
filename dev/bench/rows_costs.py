"""What token rows cost: a sampling step against plain CFG, launches of a step, and a training step against the same method on all rows.

    python dev/bench/rows_costs.py [--rounds 9] [--side 32] [--threads 1]

SD 1.5 reduced in width, at its full depth where launches are counted; random weights, on which time does not depend. Needs COMFYUI_PATH (or the
host that `kindred.py test` made).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "support"))
sys.path.append(str(ROOT / "dev" / "bench"))

import harness  # noqa: E402
from kindred_testing import script  # noqa: E402

drawing, training = script("dev/bench/guidance.py"), script("dev/bench/training.py")
STEP = training.STEP

# Operators that start no work on a device: they only look at memory in another way.
VIEWS = (
    "view",
    "reshape",
    "permute",
    "transpose",
    "expand",
    "slice",
    "select",
    "unsqueeze",
    "squeeze",
    "t.",
    "detach",
    "alias",
    "_unsafe_view",
    "split",
    "chunk",
)
VIEWS += ("as_strided", "empty", "narrow", "unbind", "_local_scalar_dense", "is_", "lift_fresh")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--side", type=int, default=32, help="of the latents while sampling")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    from kindred_testing import pack, rows, start_host
    from kindred_testing.models import load, sd15_checkpoint

    start_host()
    torch.set_num_threads(options.threads)
    base = load(sd15_checkpoint(dtype="float32"))
    concept = rows.concept(base)
    model, clip = rows.loaded(base, concept)
    everywhere, _ = pack("host.lora").apply_lora(base[0], None, dict(concept.lora))
    positive, negative = rows.encode(clip, "a photo of a <v1> dog on the beach"), rows.encode(base[1], "")
    latent = (1, 4, options.side, options.side)
    makers = {"plain CFG": base[0], "on the token's rows": model, "on all rows (merged)": everywhere}
    ways = {name: drawing.Drawing(lambda one=one: guider(one, positive, negative), [one], latent, 8, torch.device("cpu")) for name, one in makers.items()}
    print(harness.measure(ways, baseline="plain CFG", rounds=options.rounds).markdown(f"A sampling step, latents {options.side} x {options.side}"))
    counted = {name: launches(one, positive, negative) for name, one in makers.items()}
    print("\nlaunches of a step after the first:", ", ".join(f"{name} {count} ({count / counted['plain CFG']:.3f})" for name, count in counted.items()), "\n")

    photos = torch.rand(4, 256, 256, 3, generator=torch.Generator().manual_seed(0))
    learned = pack("training.data.concept").make_concept([photos], "<v1>", "dog")
    common = pack("training.settings").TrainSettings(steps=200, batch_size=2, resolution=128, augment=False, spl_weight=0.0)
    with pack("host.training").training_mode():
        runs = {name: training.prepared(pack, base, learned, dataclasses.replace(common, rows=name)) for name in ("all", "token")}
        steps: dict[str, harness.Way] = {f"rows {name}": training.stepping(run) for name, run in runs.items()}
        steps["rows token, leak"] = measuring(runs["token"])
        table = harness.measure(steps, baseline="rows all", rounds=options.rounds)
    print(table.markdown("A training step, K/V + token, batch 2, 128 pixels", (STEP,)))
    share = statistics.median(a / b for a, b in zip(table.rows["rows token, leak"].seconds[STEP], table.rows["rows token"].seconds[STEP], strict=True))
    every = pack("training.run").LEAK_EVERY
    print(f"the leak: {share:.2f} of a step, every {every} steps: {share / every:.2%} of the time")


def guider(model, positive, negative):
    import comfy.samplers

    made = comfy.samplers.CFGGuider(model)
    made.set_conds(positive, negative)
    made.set_cfg(7.5)
    return made


def launches(model, positive, negative) -> int:
    """Operators that start work, of one step after the first."""
    from comfy import samplers

    counts: list[int] = []

    class Count(TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if not str(func).removeprefix("aten.").startswith(VIEWS):
                Count.number += 1
            return func(*args, **(kwargs or {}))

    def now(*_):
        counts.append(Count.number)

    with torch.inference_mode(), Count():
        made = guider(model, positive, negative)
        sigmas = samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 4)
        made.sample(torch.randn(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), samplers.sampler_object("euler"), sigmas, callback=now, disable_pbar=True, seed=1)
    return counts[2] - counts[1]


def measuring(run):
    """One measurement of the leak."""

    def way():
        seconds: dict[str, float] = {}
        with harness.clock(seconds, STEP):
            run._leak(0)
        return seconds

    return way


if __name__ == "__main__":
    main()
