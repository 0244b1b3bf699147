"""Draws with the host's own nodes and lets the judge look: SEEN and HELD-OUT combinations apart, balanced over all attributes.

    python dev/demo/base/evaluate.py CHECKPOINT --comfyui PATH [--count 256] [--out FOLDER]

Writes ``evaluation.json``, a grid of the first pictures, and one of those that the judge finds wrong, in the order of their prompts in the file.
Every picture has a prompt of its own; noise is drawn for a batch, so that another --batch gives other pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from world import scene  # noqa: E402

from base import judge as judges  # noqa: E402
from base.rooms import load, start_host  # noqa: E402

Combo = tuple[str, str, str, str]


def balanced(combos: list[Combo], count: int, seed: int) -> list[Combo]:
    """``count`` combinations in which every value of every attribute comes up about equally often."""
    rng, left, used, out = random.Random(seed), list(combos), {}, []
    for _ in range(count):
        left = left or list(combos)
        candidates = rng.sample(left, min(60, len(left)))
        best = min(candidates, key=lambda combo: sum(used.get((i, value), 0) * len(list(scene.ATTRIBUTES.values())[i]) for i, value in enumerate(combo)))
        left.remove(best)
        for pair in enumerate(best):
            used[pair] = used.get(pair, 0) + 1
        out.append(best)
    return out


class Host:
    """The stock nodes, called as the host's executor calls them."""

    def __init__(self, comfyui: Path, checkpoint: Path, cpu: bool):
        start_host(comfyui, cpu=cpu)
        import folder_paths

        import nodes

        folder_paths.add_model_folder_path("checkpoints", str(checkpoint.parent), is_default=True)
        self.nodes = nodes
        self.clip: Any
        with torch.inference_mode():
            self.model, self.clip, self.vae = nodes.CheckpointLoaderSimple().load_checkpoint(checkpoint.name)

    @torch.inference_mode()
    def draw(self, prompts: list[str], seed: int, steps: int, cfg: float, size: int, sampler: str = "dpmpp_2m", scheduler: str = "karras") -> torch.Tensor:
        """Pictures [B, 3, size, size] in [0, 1]: one batch, one conditioning row a prompt."""
        encode = self.nodes.CLIPTextEncode().encode
        positive = [[torch.cat([encode(self.clip, prompt)[0][0][0] for prompt in prompts]), {}]]
        latent = self.nodes.EmptyLatentImage().generate(size, size, len(prompts))[0]
        done = self.nodes.KSampler().sample(self.model, seed, steps, cfg, sampler, scheduler, positive, encode(self.clip, "")[0], latent)[0]
        return self.nodes.VAEDecode().decode(self.vae, done)[0].movedim(-1, 1).clamp(0, 1).float()

    @torch.inference_mode()
    def ends(self, prompts: list[str]) -> torch.Tensor:
        """The end token's features [B, 768], what SPL and the drift report look at."""
        out = []
        for prompt in prompts:
            tokens = self.clip.tokenize(prompt)
            ids = [pair[0] for pair in tokens["l"][0]]
            out.append(self.clip.encode_from_tokens(tokens)[0, ids.index(49407)])
        return torch.stack(out).float()


def swaps(host: Host, count: int = 32) -> dict[str, float]:
    """Mean end-token cosine of prompts that differ in one attribute."""
    rng, out = random.Random(11), {}
    for slot, (name, values) in enumerate(scene.ATTRIBUTES.items()):
        pairs = []
        for one in rng.sample(scene.combinations(), count):
            two = list(one)
            two[slot] = rng.choice([value for value in values if value != one[slot]])
            pairs.append(torch.nn.functional.cosine_similarity(*host.ends([scene.caption(*one), scene.caption(*two)]), dim=0).item())
        out[name] = round(sum(pairs) / count, 4)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"))
    parser.add_argument("--judge", type=Path, default=HERE / "judge.safetensors")
    parser.add_argument("--count", type=int, default=256, help="pictures of each kind")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=5.0)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("evaluation"))
    options = parser.parse_args()
    if options.comfyui is None:
        parser.error("no ComfyUI: give --comfyui or set COMFYUI_PATH")
    torch.set_num_threads(options.threads)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    bootstrap, sharpness = load("evaluation.bootstrap"), load("evaluation.judge").sharpness
    judge = judges.Judge.load(options.judge.resolve())
    host = Host(options.comfyui.resolve(), options.checkpoint.resolve(), cpu=not torch.cuda.is_available())

    held = scene.held_out()
    result: dict = {"steps": options.steps, "cfg": options.cfg, "batch": options.batch, "end_token_cosine_after_a_swap": swaps(host)}
    for kind, wanted in (("seen", False), ("held out", True)):
        combos = balanced([combo for combo in scene.combinations() if (combo in held) == wanted], options.count, seed=5)
        began, pictures = time.monotonic(), []
        for at in range(0, options.count, options.batch):
            pictures.append(
                host.draw([scene.caption(*combo) for combo in combos[at : at + options.batch]], 1000 + at, options.steps, options.cfg, options.size)
            )
        seconds = time.monotonic() - began
        images = torch.cat(pictures)
        truth = torch.stack([torch.from_numpy(np.asarray(scene.named(*combo, seed=i).draw(options.size)).copy()) for i, combo in enumerate(combos)])
        right = judge.right(images, [dict(zip(scene.ATTRIBUTES, combo, strict=True)) for combo in combos])
        whole = [all(r.values()) for r in right]
        of_class = {c: [r for r, combo in zip(whole, combos, strict=True) if combo[0] == c] for c in scene.CLASSES}
        wrong = [i for i, r in enumerate(whole) if not r]
        result[kind] = {
            "images": len(images),
            "all four": str(bootstrap.share(whole)),
            **{name: str(bootstrap.share([r[name] for r in right])) for name in scene.ATTRIBUTES},
            "by class": {c: f"{sum(r)}/{len(r)}" for c, r in of_class.items()},
            "sharpness against renders": round((sharpness(images).mean() / sharpness(truth.movedim(-1, 1) / 255).mean()).item(), 3),
            "seconds an image": round(seconds / len(images), 2),
            "wrong": [f"{scene.caption(*combos[i])}: {', '.join(name for name, found in right[i].items() if not found)}" for i in wrong],
        }
        grid(images[:64], out / f"{kind.replace(' ', '-')}.png")
        if wrong:
            grid(images[wrong], out / f"{kind.replace(' ', '-')}-wrong.png", 8)
    (out / "evaluation.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


def grid(images: torch.Tensor, path: Path, columns: int = 16) -> None:
    """Saves pictures [N, 3, H, W] in rows of ``columns``; white where the last row has none."""
    images = torch.cat([images, images.new_ones(-len(images) % columns, *images.shape[1:])])
    rows = [torch.cat(list(images[at : at + columns]), 2) for at in range(0, len(images), columns)]
    Image.fromarray((torch.cat(rows, 1) * 255).round().byte().movedim(0, -1).numpy()).save(path)


if __name__ == "__main__":
    main()
