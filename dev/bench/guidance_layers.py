"""What guidance adds to a step, layer by layer: for a machine that others use, too.

    python dev/bench/guidance_layers.py --pixels 192 256

Each layer that an adapter changes is called in turn as tuned and with its weak rows, on the inputs that it has in a real step of the reduced
SD 1.5. The fastest call of each is what it costs; the excess is summed over all layers and told as a share of the fastest step. That leaves out
what happens outside of the layers (nothing of ours) and is steady to about half a percent of a step where whole steps vary by ten.
"""

from __future__ import annotations

import argparse
import time

import torch

import guidance  # the bench beside this file

KINDS = {
    "LoRA rank 4": {"rank": 4},
    "LoRA rank 32": {"rank": 32},
    "LoRA rank 128": {"rank": 128},
    "LoRA rank 32 with convolutions": {"rank": 32, "convolutions": True},
    "K/V difference": {"kind": "diff", "only": "attn2.to_"},
    "LoKr": {"kind": "lokr"},
    "LoHa rank 16": {"kind": "loha", "rank": 16},
    "DoRA rank 4": {"kind": "dora"},
    "OFT, blocks of 8": {"kind": "oft"},
}


def fastest(call, times: int) -> float:
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        call()
        best = min(best, time.process_time() - start)
    return best


def excess(base, tuned, side: int, repeats: int) -> tuple[float, float]:
    """(the step, what guidance adds to it), in seconds."""
    from comfy import model_management
    from kindred_testing import guidance_families as families
    from kindred_testing import pack

    rows = pack("guidance.layers").Rows(guidance.OMEGA)
    weak = pack("guidance.weak_model").WeakModel(tuned, base, pack("guidance.schedule").Schedule(guidance.OMEGA))
    context = families.random_conditioning("SD15", 1)[0][0].expand(2, -1, -1).contiguous()
    arguments = torch.randn(2, 4, side, side), torch.tensor([500.0, 500.0])
    with torch.inference_mode():
        model_management.load_models_gpu([tuned])
        unet, calls = tuned.model.diffusion_model, []
        with weak.installed(tuned, rows, False) as forwards:
            of = {forward.layer: forward for forward in forwards}
            hooks = [layer.register_forward_pre_hook(lambda layer, inputs: calls.append((of[layer], inputs[0].clone()))) for layer in of]
            unet(*arguments, context=context)
            for hook in hooks:
                hook.remove()
            step, added = fastest(lambda: unet(*arguments, context=context), 4), 0.0
            for forward, x in calls:
                plain = ours = float("inf")
                for _ in range(repeats):  # in turn, so that a slow moment slows both
                    rows.one_side(False)
                    plain = min(plain, fastest(lambda forward=forward, x=x: forward(x), 1))
                    rows.both_sides(((1, 2),), 2)
                    ours = min(ours, fastest(lambda forward=forward, x=x: forward(x), 1))
                added += ours - plain
    return step, added


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pixels", type=int, nargs="+", default=[256], help="image sizes (default 256)")
    parser.add_argument("--repeats", type=int, default=10, help="calls of each layer, of which the fastest counts (default 10)")
    parser.add_argument("--only", default="", help="only adapters whose name contains this")
    options = parser.parse_args()
    torch.set_num_threads(1)
    guidance.start_host()
    from kindred_testing import guidance_families as families
    from kindred_testing import guidance_models as g

    base = families.random_model("SD15")
    print("| adapter | " + " | ".join(f"{pixels} px" for pixels in options.pixels) + " |\n|---|" + "---|" * len(options.pixels))
    for name, kind in KINDS.items():
        if options.only in name:
            tuned = g.with_lora(base, g.lora(base, dtype=torch.float16, size=0.05, **kind))
            found = [excess(base, tuned, pixels // 8, options.repeats) for pixels in options.pixels]
            print(f"| {name} | " + " | ".join(f"{1 + added / step:.3f}x" for step, added in found) + " |", flush=True)
    print("\n" + guidance.harness.machine_line())


if __name__ == "__main__":
    main()
