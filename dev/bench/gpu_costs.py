"""What guidance and training cost on a graphics card: seconds, peak memory and kernel launches, at full size with random weights.

    python dev/bench/gpu_costs.py guidance --family SD15 --pixels 512 --steps 50
    python dev/bench/gpu_costs.py training --family SDXL --pixels 1024
    python dev/bench/gpu_costs.py compiled                 guidance under the host's torch.compile node

Guidance is the cost table of Steering Guidance (2025, Table 8): DDIM, CFG against CFG + AutoGuidance and Personalization Guidance. Peak memory is all
that PyTorch has allocated at once, the model included. Launches are counted by PyTorch's profiler, in one step. `--out FILE` appends results as JSON lines.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "support"))
sys.path.append(str(ROOT / "dev" / "bench"))

import harness  # noqa: E402

import guidance as bench  # noqa: E402

OMEGA, CFG = 0.6, 7.5
MEBI = 2**20
# name -> (settings of the training, families that it is measured on)
TRAININGS = {
    "K/V + token, SPL": ({"method": "kv + token"}, ("SD15", "SDXL")),
    "K/V + token, SPL, checkpointing": ({"method": "kv + token", "gradient_checkpointing": True}, ("SD15", "SDXL")),
    "LoRA 16": ({"method": "lora", "rank": 16}, ("SD15", "SDXL")),
    "LoRA 16, checkpointing": ({"method": "lora", "rank": 16, "gradient_checkpointing": True}, ("SD15", "SDXL")),
    "LoRA 4 + token, SPL": ({"method": "lora + token", "rank": 4}, ("SD15", "SDXL")),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--family", default="SD15", choices=("SD15", "SDXL"))
    parser.add_argument("--size", default="full", choices=("full", "tiny"))
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--steps", type=int, default=50, help="sampling steps of a run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1, help="pictures in a training step")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out.resolve() if options.out else None  # the host changes the working directory
    gpu = harness.gpu()
    device = gpu or torch.device("cpu")
    bench.start_host(gpu is not None)
    for row in PARTS[options.part](options, device):
        row = {"part": options.part, "family": options.family, "pixels": options.pixels, **row, "machine": harness.machine_line(device)}
        print(json.dumps(row), flush=True)
        if out:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


# -- sampling ------------------------------------------------------------------------------------------------------------


def ways(family: str, size: str):
    """(name -> the guider's maker, latent shape per pixel, models) of the cost table."""
    import comfy.samplers
    from kindred_testing import guidance_families as families
    from kindred_testing import guidance_models as g
    from kindred_testing import pack

    make_guider, Schedule = pack("guidance.guider").make_guider, pack("guidance.schedule").Schedule
    base = families.random_model(family, size, torch.float16 if torch.cuda.is_available() else torch.float32)
    positive, negative = families.random_conditioning(family, 1), families.random_conditioning(family, 2)

    def adapter(**kind):
        return g.with_lora(base, g.lora(base, dtype=torch.float16, size=0.05, **kind))

    def plain(tuned):
        guider = comfy.samplers.CFGGuider(tuned)
        guider.set_conds(positive, negative)
        guider.set_cfg(CFG)
        return guider

    def ours(tuned, **more):
        return make_guider(tuned, base, positive, negative, CFG, Schedule(0.0 if more else OMEGA), **more)

    small, large, kv = adapter(rank=4), adapter(rank=32), adapter(kind="diff", only="attn2.to_")
    return base, {
        "CFG, LoRA 4": (small, lambda: plain(small)),
        "CFG + AG, LoRA 4": (small, lambda: ours(small, mode="autoguidance", scale=1.0)),
        "PG, LoRA 4": (small, lambda: ours(small)),
        "CFG, LoRA 32": (large, lambda: plain(large)),
        "PG, LoRA 32": (large, lambda: ours(large)),
        "CFG, K/V": (kv, lambda: plain(kv)),
        "PG, K/V": (kv, lambda: ours(kv)),
    }


def draw(guider, latent: tuple[int, ...], steps: int) -> torch.Tensor:
    from comfy import samplers

    noise = torch.randn(latent, generator=torch.Generator().manual_seed(1))
    sigmas = samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", steps)
    return guider.sample(noise, torch.zeros(latent), samplers.sampler_object("ddim"), sigmas, disable_pbar=True, seed=1)


def guidance(options, device: torch.device):
    from comfy import model_management

    base, found = ways(options.family, options.size)
    side = options.pixels // 8
    latent = (1, base.get_model_object("latent_format").latent_channels, side, side)
    rows = {name: {"way": name, "seconds": []} for name in found}
    with torch.inference_mode():
        for name, (model, make) in found.items():
            model_management.load_models_gpu([model])
            draw(make(), latent, 2)
            rows[name]["launches a step"] = launches(lambda make=make: draw(make(), latent, 3)) - launches(lambda make=make: draw(make(), latent, 2))
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            draw(make(), latent, 3)
            rows[name]["peak MB"] = round(torch.cuda.max_memory_allocated() / MEBI) if device.type == "cuda" else None
        for _ in range(options.rounds):
            for name, (model, make) in found.items():
                model_management.load_models_gpu([model])
                guider = make()
                start = harness.now(device)
                draw(guider, latent, options.steps)
                rows[name]["seconds"].append(round(harness.now(device) - start, 4))
    for row in rows.values():
        yield {**row, "steps": options.steps, "median": statistics.median(row["seconds"])}


def launches(work) -> int:
    """Kernels that `work` starts."""
    if not torch.cuda.is_available():
        return 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    return sum(event.name.startswith(("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")) for event in profile.events() or ())


def compiled(options, device: torch.device):
    """One step of CFG and of guidance under the host's compile node; the first run, which compiles, apart."""
    from comfy import model_management
    from comfy_extras.nodes_torch_compile import TorchCompileModel

    base, found = ways(options.family, options.size)
    side = options.pixels // 8
    latent = (1, base.get_model_object("latent_format").latent_channels, side, side)
    for name in ("CFG, LoRA 4", "PG, LoRA 4", "CFG, K/V", "PG, K/V"):
        model, make = found[name]
        with torch.inference_mode():
            model_management.load_models_gpu([model])
            plain = draw(make(), latent, 4)
            row = {"way": name, "seconds": [], "steps": options.steps}
            try:
                guider = make()
                patched = TorchCompileModel.execute(guider.model_patcher, "inductor")
                guider.model_patcher = getattr(patched, "args", patched)[0]
                guider.model_options = guider.model_patcher.model_options
                torch._dynamo.reset()
                start = time.perf_counter()
                result = draw(guider, latent, 4)
                row["first run"] = round(time.perf_counter() - start, 1)
                row["difference"] = float((result - plain).norm() / plain.norm())
                row["launches a step"] = launches(lambda guider=guider: draw(guider, latent, 3)) - launches(lambda guider=guider: draw(guider, latent, 2))
                for _ in range(options.rounds):
                    start = harness.now(device)
                    draw(guider, latent, options.steps)
                    row["seconds"].append(round(harness.now(device) - start, 4))
                row["median"] = statistics.median(row["seconds"])
            except Exception as error:  # another way still has its turn, and the table says what happened
                row["error"] = f"{type(error).__name__}: {str(error)[:400]}"
        yield row


# -- training ------------------------------------------------------------------------------------------------------------


def training(options, device: torch.device):
    from comfy import model_management
    from kindred_testing import guidance_families as families
    from kindred_testing import pack, text_models
    from kindred_testing.models import sd15

    full = {"clip_l_model_config": {}, "clip_g_model_config": {}} if options.size == "full" else None
    text = getattr(text_models, options.family.lower())
    module = text_models.__name__
    clip = text.__wrapped__(0) if full is None else full_text(sys.modules[module], options.family, full)
    vae = sd15()[2]
    photos = torch.rand(4, options.pixels, options.pixels, 3, generator=torch.Generator().manual_seed(0))
    concept = pack("training.data.concept").make_concept([photos], "<v1>", "dog")
    settings = pack("training.settings").TrainSettings
    for name, (chosen, on) in TRAININGS.items():
        if options.family not in on:
            continue
        row = {"way": name, "batch": options.batch}
        base = families.random_model(options.family, options.size, torch.float16 if device.type == "cuda" else torch.float32)
        run = None
        try:
            with pack("host.training").training_mode():
                run = pack("training.run").Run(
                    base, clip, vae, [concept], settings(steps=8, batch_size=options.batch, resolution=options.pixels, augment=False, **chosen)
                )
                run.prepare()
                vae.patcher.detach()
                row["precision"] = run.precision
                row["model MB"] = round(torch.cuda.memory_allocated() / MEBI) if device.type == "cuda" else None
                run.step(0)
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                run.step(1)
                row["peak MB"] = round(torch.cuda.max_memory_allocated() / MEBI) if device.type == "cuda" else None
                times = []
                for index in range(2, 7):
                    start = harness.now(device)
                    run.step(index)
                    times.append(round(harness.now(device) - start, 4))
                row |= {"seconds": times, "median": statistics.median(times), "launches a step": launches(lambda run=run: run.step(7))}
        except Exception as error:  # as above
            row["error"] = f"{type(error).__name__}: {str(error)[:400]}"
        del run, base
        model_management.unload_all_models()
        gc.collect()
        model_management.soft_empty_cache()
        yield row


def full_text(text_models, family: str, options: dict):
    """The family's text encoder with all its layers, random weights."""
    from comfy import sd1_clip, sdxl_clip

    classes = {"SD15": (sd1_clip.SD1ClipModel, sd1_clip.SD1Tokenizer), "SDXL": (sdxl_clip.SDXLClipModel, sdxl_clip.SDXLTokenizer)}
    return text_models._make(*classes[family], 0, options)


PARTS = {"guidance": guidance, "training": training, "compiled": compiled}

if __name__ == "__main__":
    main()
