"""What a training step costs: against the forward pass of the same batch, core's TrainLoraNode, and diffusers' training step.

    python dev/bench/training.py [--rounds 7] [--latent 16] [--threads 1] [--large]

One layout for all: SD 1.5 reduced in depth, random weights, batch 2. A step is what an artist waits for: prompts (those of a live token are
encoded anew), noise, forward and backward pass, clipping, AdamW. Rows:

    LoRA rank 16 on attention      ours; core's TrainLoraNode, which adapts every module and knows no other choice; diffusers' example
                                   (PEFT's LoRA on the same layers, its loss, clipping and optimizer, text features given)
    K/V + token                    ours with and without the Semantic Preservation Loss
    gradient checkpointing         each of them, where it is to be had

Needs COMFYUI_PATH (or the host that `kindred.py test` made), and diffusers and peft for its rows (both are among the test tools).
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "support"))  # the small model and the real host under the tests
sys.path.append(str(ROOT / "dev" / "bench"))

import harness  # noqa: E402

FORWARD = "forward pass"
ENCODING = "forward pass, the live token's prompt encoded"
STEP = "step"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--latent", type=int, default=16, help="side of the latents (16 = pictures of 128 pixels)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--large", action="store_true", help="107 million parameters (two levels) instead of 26")
    arguments = parser.parse_args()

    from kindred_testing import pack, start_host
    from kindred_testing.models import load, sd15_checkpoint

    start_host()
    torch.set_num_threads(arguments.threads)
    base = load(sd15_checkpoint(dtype="float32"))  # as diffusers holds it: fp16 weights would be cast at every use on a processor
    base = large(base) if arguments.large else base
    photos = torch.rand(4, 256, 256, 3, generator=torch.Generator().manual_seed(0))
    concept = pack("training.data.concept").make_concept([photos], "<v1>", "dog")
    common = pack("training.settings").TrainSettings(steps=8, batch_size=2, resolution=arguments.latent * 8, augment=False)
    lora = dataclasses.replace(common, method="lora", rank=16)
    settings = {
        "K/V + token, SPL": common,
        "K/V + token, without SPL": dataclasses.replace(common, spl_weight=0.0),
        "K/V + token, SPL, checkpointing": dataclasses.replace(common, gradient_checkpointing=True),
        "LoRA 16": lora,
        "LoRA 16, checkpointing": dataclasses.replace(lora, gradient_checkpointing=True),
        "LoRA 16 + token, SPL": dataclasses.replace(lora, method="lora + token"),
    }
    with pack("host.training").training_mode():
        runs = {name: prepared(pack, base, concept, chosen) for name, chosen in settings.items()}
        ways: dict[str, harness.Way] = {FORWARD: forward(runs["LoRA 16"]), ENCODING: forward(runs["K/V + token, without SPL"])}
        ways |= {f"ours, {name}": stepping(run) for name, run in runs.items()}
        ways |= {f"core's TrainLoraNode, rank 16{', checkpointing' * on}": core_way(base, arguments.latent, on) for on in (False, True)}
        skipped = {}
        try:
            ways |= {f"diffusers, LoRA 16{', checkpointing' * on}": diffusers_way(arguments.latent, arguments.large, on) for on in (False, True)}
        except ImportError as error:
            skipped["diffusers, LoRA 16"] = str(error)
        table = harness.measure(ways, baseline=FORWARD, rounds=arguments.rounds)
        table.skipped |= skipped
        size = sum(parameter.numel() for parameter in base[0].model.diffusion_model.parameters())
    print(table.markdown(f"A training step: SD 1.5 layout, {size / 1e6:.0f} M parameters, batch 2, latents {arguments.latent} x {arguments.latent}", (STEP,)))

    def against(way: str, baseline: str) -> None:
        ratios = [a / b for a, b in zip(table.rows[way].seconds[STEP], table.rows[baseline].seconds[STEP], strict=True)]
        print(f"{way}, against {baseline}: {statistics.median(ratios):.2f}")

    print()
    for name, chosen in settings.items():
        against(f"ours, {name}", ENCODING if chosen.learns_tokens else FORWARD)
    for suffix in ("", ", checkpointing"):
        for baseline in ("core's TrainLoraNode, rank 16", "diffusers, LoRA 16"):
            if baseline + suffix in table.rows:
                against(f"ours, LoRA 16{suffix}", baseline + suffix)


def timed(do):
    def way():
        seconds: dict[str, float] = {}
        with harness.clock(seconds, STEP):
            do()
        return seconds

    return way


def prepared(pack, base, concept, settings):
    run = pack("training.run").Run(*base, [concept], settings)
    run.prepare()
    run.count = 0
    return run


def stepping(run):
    def step():
        run.step(run.count % run.settings.steps)
        run.count += 1

    return timed(step)


def forward(run):
    def once():
        with torch.no_grad():
            run._denoising_losses(0)

    return timed(once)


def core_way(base, latent: int, checkpointing: bool):
    """A step of core's trainer: the time of three steps less that of one, so that its set-up is not counted."""
    from comfy_extras.nodes_train import TrainLoraNode

    model, clip, _ = base
    with torch.inference_mode():
        positive = clip.encode_from_tokens_scheduled(clip.tokenize("a photo of a dog"))
    latents = [{"samples": torch.randn(4, 4, latent, latent)}]

    def run(steps: int) -> float:
        seconds: dict[str, float] = {}
        with harness.clock(seconds, STEP), torch.inference_mode():
            TrainLoraNode.execute(
                **{name: [value] for name, value in _core_settings(steps, checkpointing).items()}, model=[model], latents=latents, positive=[positive]
            )
        return seconds[STEP]

    return lambda: {STEP: (run(3) - run(1)) / 2}


def _core_settings(steps: int, checkpointing: bool) -> dict:
    return {
        "batch_size": 2,
        "steps": steps,
        "grad_accumulation_steps": 1,
        "learning_rate": 1e-4,
        "rank": 16,
        "optimizer": "AdamW",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": checkpointing,
        "checkpoint_depth": 1,
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": False,
    }


def diffusers_way(latent: int, two_levels: bool, checkpointing: bool):
    """The step of diffusers' LoRA example on the same layout: add noise, predict, mean squared error, clip, AdamW, schedule."""
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from diffusers.optimization import get_scheduler
    from peft import LoraConfig

    levels = 2 if two_levels else 1
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(320, 640)[:levels],
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        layers_per_block=1,
        cross_attention_dim=768,
        attention_head_dim=8,
        sample_size=latent,
    ).requires_grad_(False)
    unet.add_adapter(LoraConfig(r=16, lora_alpha=16, init_lora_weights="gaussian", target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    if checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    schedule = get_scheduler("constant", optimizer)
    noising = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    latents, context = torch.randn(2, 4, latent, latent), torch.randn(2, 77, 768)

    def step():
        noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (2,))
        noisy = noising.add_noise(latents, noise, timesteps)  # pyright: ignore[reportArgumentType]: it takes any whole numbers
        prediction = unet(noisy, timesteps, context, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(prediction.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss.item()

    return timed(step)


def large(base):
    """The same text encoder and VAE with a UNet of two levels, whose weights are random."""
    import comfy.model_base
    import comfy.model_patcher
    from kindred_testing import guidance_families

    small, clip, vae = base
    config = small.model.model_config
    layout = {**config.unet_config, "num_res_blocks": [1, 1], "channel_mult": [1, 2], "transformer_depth": [1, 1], "transformer_depth_output": [1] * 4}
    kind = type(config)(layout)
    kind.set_inference_dtype(torch.float32, None)

    def make(disable_dynamic: bool = False):
        with torch.inference_mode():
            module = comfy.model_base.BaseModel(kind, device=torch.device("cpu"))
            guidance_families.fill(module.diffusion_model, torch.Generator().manual_seed(0))
            patcher = comfy.model_patcher.CoreModelPatcher(module, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
        patcher.cached_patcher_init = (make, ())  # core's trainer has the loader make it anew
        return patcher

    return make(), clip, vae


if __name__ == "__main__":
    main()
