"""What an adjustment costs: Conditioning SLERP on SDXL's 77 x 2048, against core's ConditioningAverage.

    python dev/bench/embedding.py [--device cuda]

No model is needed: the conditionings are random, of SDXL's shapes. The bar is 2 ms on a processor.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "dev" / "bench"), str(ROOT / "host" / "standalone")]

import harness  # noqa: E402
import kindred_standalone  # noqa: E402

CALLS = 100  # in each timed run; one call is too short to time alone


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    adjust_conditioning = kindred_standalone.load("embedding.conditioning").adjust_conditioning

    device = torch.device(arguments.device)
    with torch.inference_mode():
        prompt, anchor = (_sdxl(seed, device) for seed in (0, 1))
        partners = torch.arange(77) - (torch.arange(77) > 4).long()
        partners[5] = -1
        by_token = {"clip_l": partners, "clip_g": partners}
        table = harness.measure(
            {
                "core ConditioningAverage": _repeat(lambda: _average(prompt, anchor), device),
                "Conditioning SLERP, by position": _repeat(lambda: adjust_conditioning(prompt, anchor), device),
                "Conditioning SLERP, by token": _repeat(lambda: adjust_conditioning(prompt, anchor, partners=by_token), device),
                "Conditioning SLERP, float16": _repeat(lambda: adjust_conditioning(_half(prompt), _half(anchor)), device),
            },
            baseline="core ConditioningAverage", rounds=arguments.rounds, device=device, memory=False,
        )  # fmt: skip
    print(table.markdown("Adjusting one SDXL conditioning (77 x 2048 and the pooled 1280)", ("one call",)))
    for name in table.rows:
        print(f"{name}: {table.seconds(name, 'one call') * 1e3:.2f} ms")


def _repeat(call, device: torch.device):
    def run():
        _wait(device)
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        _wait(device)
        return {"one call": (time.perf_counter() - start) / CALLS}

    return run


def _average(prompt: list, anchor: list, strength: float = 0.8) -> list:
    """What core's ConditioningAverage computes for one entry of equal length."""
    (v, extra), (c, other) = prompt[0], anchor[0]
    pooled = extra["pooled_output"] * strength + other["pooled_output"] * (1.0 - strength)
    return [[v * strength + c * (1.0 - strength), {**extra, "pooled_output": pooled}]]


def _sdxl(seed: int, device: torch.device) -> list:
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(1, 77, 2048, generator=generator).to(device), {"pooled_output": torch.randn(1, 1280, generator=generator).to(device)}]]


def _half(conditioning: list) -> list:
    return [[conditioning[0][0].half(), {"pooled_output": conditioning[0][1]["pooled_output"].half()}]]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
