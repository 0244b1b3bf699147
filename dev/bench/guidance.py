"""What Personalization Guidance costs against plain CFG and against the other ways to a second model.

    python dev/bench/guidance.py                     the reduced SD 1.5 on the CPU; full-size models too where there is a GPU
    python dev/bench/guidance.py --rounds 9 --only "LoRA rank 4" --write dev/bench/guidance.md
    python dev/bench/guidance.py --set-up            only what comes before the first step, for LoRAs on every linear layer of the full-size SD 1.5

All weights are random: time and memory do not depend on them. Needs COMFYUI_PATH (or the host that `kindred.py test` made).
Every run loads its model first, outside of the measurement; an adapter is compared with plain CFG on the same tuned model. Measured are: the steps after the first (median of a run), the first step,
all steps, and the set-up, which is all from the call to the first forward of the model, less plain CFG's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from itertools import pairwise
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "support"))  # the small models and the real host under the tests
sys.path.append(str(ROOT / "dev" / "bench"))

import harness  # noqa: E402
from kindred_testing import start_host  # noqa: E402

OMEGA = 0.6
CFG = "plain CFG (LoRA rank 4)"


class _SetUp(Exception):
    """Ends a run before its first forward pass."""


class Drawing:
    """One sampling run of a way: `prepare` makes the guider from loaded models (measured), `models` are loaded before (not measured)."""

    def __init__(self, prepare, models, latent: tuple[int, ...], steps: int, device: torch.device):
        """`steps` 0: only the set-up is measured."""
        self.prepare, self.models, self.latent, self.steps, self.device = prepare, models, latent, steps, device

    def __call__(self) -> dict[str, float]:
        from comfy import model_management, samplers

        times: list[float] = []

        def now(*_):
            times.append(harness.now(self.device))

        with torch.inference_mode():
            model_management.load_models_gpu(self.models)
            begin = harness.now(self.device)
            guider = self.prepare()
            noise = torch.randn(self.latent, generator=torch.Generator().manual_seed(1))
            sigmas = samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", self.steps or 1)
            first = []

            def forward(executor, *args, **kwargs):
                if not first:
                    now()
                    first.append(times.pop())
                    if not self.steps:
                        raise _SetUp
                return executor(*args, **kwargs)

            guider.model_patcher = guider.model_patcher.clone()
            guider.model_options = guider.model_patcher.model_options
            guider.model_patcher.add_wrapper_with_key("predict_noise", "bench", forward)
            try:
                guider.sample(noise, torch.zeros(self.latent), samplers.sampler_object("euler"), sigmas, callback=now, disable_pbar=True, seed=1)
            except _SetUp:
                return {"set-up": first[0] - begin}
        steps = [after - before for before, after in pairwise(times)]
        return {"step": statistics.median(steps), "first step": times[0] - first[0], "all steps": times[-1] - first[0], "set-up": first[0] - begin}


def ways(family: str, size: str, side: int, steps: int, dtype: torch.dtype, device: torch.device, only: str) -> tuple[dict, dict, dict]:
    """(way -> a run of it, way -> plain CFG on the same tuned model, way -> bytes of its adapter), on one module that all but the two-module ways share."""
    import comfy.hooks
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_DualModel
    from kindred_testing import guidance_families as families
    from kindred_testing import guidance_models as g
    from kindred_testing import pack

    make_guider, Schedule = pack("guidance.guider").make_guider, pack("guidance.schedule").Schedule
    base = families.random_model(family, size, dtype)
    positive, negative = families.random_conditioning(family, 1), families.random_conditioning(family, 2)
    latent = (1, base.get_model_object("latent_format").latent_channels, side, side)

    def adapter(**kind):
        return g.lora(base, dtype=torch.float16, size=0.05, **kind)

    def plain(tuned):
        def prepare():
            guider = comfy.samplers.CFGGuider(tuned)
            guider.set_conds(positive, negative)
            guider.set_cfg(7.5)
            return guider

        return Drawing(prepare, [tuned], latent, steps, device)

    def ours(tuned, reference=base, **course):
        def prepare():
            return make_guider(tuned, reference, positive, negative, 7.5, Schedule(OMEGA, **course))

        return Drawing(prepare, [tuned], latent, steps, device)

    small = adapter(rank=4)
    tuned = g.with_lora(base, small)

    def hooks():
        sides = []
        for conditioning, strength in ((positive, 1.0), (negative, OMEGA)):
            sides.append(comfy.hooks.set_hooks_for_conditioning(conditioning, comfy.hooks.create_hook_lora(small, strength, 0.0)))
        guider = comfy.samplers.CFGGuider(base)
        guider.set_conds(*sides)
        guider.set_cfg(7.5)
        return guider

    def dual():
        guider = Guider_DualModel(tuned, other)
        guider.set_conds(positive, negative)
        guider.set_cfg(7.5)
        return guider

    kinds = {
        "LoRA rank 4": {"rank": 4},
        "LoRA rank 32": {"rank": 32},
        "LoRA rank 128": {"rank": 128},
        "LoRA rank 32 with convolutions": {"rank": 32, "convolutions": True},
        "K/V difference": {"kind": "diff", "only": "attn.qkv" if family == "SD3" else "attn2.to_"},
        "LoKr": {"kind": "lokr"},
        "LoHa rank 4": {"kind": "loha"},
        "LoHa rank 16": {"kind": "loha", "rank": 16},
        "DoRA rank 4": {"kind": "dora"},
        "OFT, blocks of 8": {"kind": "oft"},
    }
    found, own, sizes = {CFG: plain(tuned)}, {}, {}
    for name, kind in kinds.items():
        if only in name:
            state = adapter(**kind)
            model, name = g.with_lora(base, state), f"ours, {name}"
            found[name], own[name] = ours(model), plain(model)
            sizes[name] = sum(value.numel() for value in state.values()) * dtype.itemsize
    if not only:
        found["ours, LoRA rank 4, guidance from 20% to 80%"] = ours(tuned, start=0.2, end=0.8)
        found["ours, LoRA rank 4, omega from 0 to 0.6"] = ours(tuned, omega_end=0.0, curve="linear")
        found["conditioning hooks, LoRA rank 4"] = Drawing(hooks, [base], latent, steps, device)
        other = families.random_model(family, size, dtype, seed=1)
        found["two modules, core DualModelGuider"] = Drawing(dual, [tuned, other], latent, steps, device)
        found["ours, two checkpoints"] = Drawing(ours(other).prepare, [other, base], latent, steps, device)
    return found, own, sizes


def bench(family: str, size: str, pixels: int, dtype: torch.dtype, device: torch.device, options) -> str:
    found, own, sizes = ways(family, size, pixels // 8, options.steps, dtype, device, options.only)
    table = harness.measure(found, CFG, rounds=options.rounds, device=device, own=own)
    base = table.rows[CFG].seconds["set-up"]
    for row in table.rows.values():  # what a way adds to the host's own preparation
        row.seconds["set-up over CFG"] = [own - plain for own, plain in zip(row.seconds.pop("set-up"), base, strict=True)] if row.name != CFG else []
        row.ratios.pop("set-up", None)
    table.rows[CFG].seconds.pop("set-up over CFG")
    count = sum(value.numel() for value in found[CFG].models[0].model.diffusion_model.parameters()) / 1e6
    title = f"{family}{' reduced' if size == 'tiny' else ''} ({count:,.0f} M parameters), {pixels} px, {str(dtype).removeprefix('torch.')}, {options.steps} steps of Euler"
    adapters = ", ".join(f"{name.removeprefix('ours, ')} {size / 2**20:.1f}" for name, size in sizes.items())
    loaded = found[CFG].models[0]
    weights = (loaded.model_size() + sum(value.weight.nbytes for value in loaded.backup.values())) / 2**20
    sized = f"The adapters, in the model's precision, in MB: {adapters}. The model with what the host keeps to take patches off again: {weights:,.0f} MB."
    return table.markdown(title, ("step", "first step", "all steps", "set-up over CFG")) + "\n" + sized


def set_up(options) -> str:
    """A table of what guidance does before its first step, on full-size SD 1.5 in half precision: no forward pass, so a processor will do."""
    found, own, sizes = ways("SD15", "full", 64, 0, torch.float16, torch.device("cpu"), "LoRA rank")
    lines = ["| adapter | layers | set-up over CFG |", "|---|---|---|"]
    for name, guided in found.items():
        if name in sizes:
            pairs = [(own[name](), guided()) for _ in range(options.rounds + 1)][1:]
            seconds = [ours["set-up"] - plain["set-up"] for plain, ours in pairs]
            lines.append(
                f"| {name.removeprefix('ours, ')} | {len(guided.models[0].patches)} | {statistics.median(seconds):.3f} s (at most {max(seconds):.3f}) |"
            )
    return "\n".join(["### Set-up: full-size SD 1.5, float16", "", *lines, "", harness.machine_line()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds (default 7)")
    parser.add_argument("--steps", type=int, default=6, help="sampling steps a run (default 6)")
    parser.add_argument("--pixels", type=int, default=256, help="image size of the reduced model on the CPU (default 256)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1: steadier than all of a shared machine)")
    parser.add_argument("--only", default="", help="only adapters whose name contains this, against plain CFG")
    parser.add_argument("--write", type=Path, help="also write the tables to this file")
    parser.add_argument("--families", nargs="+", default=["SD15", "SDXL", "SD3"], choices=("SD15", "SDXL", "SD3"), help="of full size, on a GPU")
    parser.add_argument("--set-up", action="store_true", help="only what comes before the first step, on full-size SD 1.5 (about 5 GB of memory)")
    options = parser.parse_args()
    gpu = harness.gpu()
    torch.set_num_threads(options.threads)
    write = options.write.resolve() if options.write else None  # the host changes the working directory
    start_host(gpu is not None)
    if options.set_up:
        print(set_up(options))
        return
    parts = []
    if gpu is None:
        parts.append(bench("SD15", "tiny", options.pixels, torch.float32, torch.device("cpu"), options))
        parts.append("Full-size SD 1.5 (512 px), SDXL (1024 px) and SD3 (1024 px): skipped, no GPU on this machine.")
    else:
        for family, pixels in {"SD15": 512, "SDXL": 1024, "SD3": 1024}.items():
            if family not in options.families:
                continue
            parts.append(bench(family, "full", pixels, torch.float16, gpu, options))
    text = (
        "\n\n".join(
            [
                "Times are ratios to plain CFG on the same tuned model, then seconds. Memory: what a run allocates at its peak, and in brackets what that is over CFG.",
                *parts,
            ]
        )
        + "\n"
    )
    print(text)
    if write:
        write.write_text("# Guidance: what it costs\n\n" + text)


if __name__ == "__main__":
    main()
