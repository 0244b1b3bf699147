"""What a training step costs against the forward pass of the same batch.

    python bench/training.py [--rounds 7] [--latent 16] [--threads 1]

The reduced SD 1.5 with random weights, kv + token with the Semantic Preservation Loss, batch 2: encode the prompts, predict, compare;
the step adds the backward pass, the clipping, AdamW and the loss on the text features. Needs COMFYUI_PATH (or the host that
`kindred.py test` made).
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "support"))  # the small model and the real host under the tests
sys.path.append(str(ROOT / "bench"))

import harness  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--latent", type=int, default=16, help="side of the latents (16 = pictures of 128 pixels)")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()

    from kindred_testing import pack, start_host
    from kindred_testing.models import load, sd15_checkpoint

    start_host()
    torch.set_num_threads(arguments.threads)
    trainer, host = pack("training.trainer"), pack("host.training")
    base = load(sd15_checkpoint())
    photos = torch.rand(4, 256, 256, 3, generator=torch.Generator().manual_seed(0))
    concept = pack("training.concept").make_concept([photos], "<v1>", "dog")
    settings = trainer.TrainSettings(steps=4, batch_size=2, resolution=arguments.latent * 8, augment=False)
    with host.training_mode():
        runs = {
            name: _prepared(trainer, base, concept, dataclasses.replace(settings, spl_weight=weight))
            for name, weight in (("with SPL", 1.0), ("without SPL", 0.0))
        }
        plain = runs["without SPL"]

        def forward():
            with torch.no_grad():
                plain._denoising_loss(plain.data.batch(0), 0)

        ways = {"forward pass": forward, "step without SPL": lambda: _step(plain), "step with SPL": lambda: _step(runs["with SPL"])}
        table = harness.measure(ways, baseline="forward pass", rounds=arguments.rounds)
    print(table.markdown(f"Training kv + token, batch 2, latents {arguments.latent} x {arguments.latent}", (harness.TOTAL,)))


def _prepared(trainer, base, concept, settings):
    run = trainer.Run(*base, [concept], settings)
    run.prepare()
    return run


def _step(run) -> None:
    run.step(0)


if __name__ == "__main__":
    main()
