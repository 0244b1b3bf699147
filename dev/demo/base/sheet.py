"""The labelled picture of what the base draws, for the README: one prompt a tile, the first picture of each, none chosen.

    python dev/demo/base/sheet.py CHECKPOINT --comfyui PATH [--out dev/demo/base/grid.jpg]

Classes run across, accessories down; colours and places walk along the diagonals. A dot marks combinations that training never showed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[0] = str(HERE.parent)
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from world import scene  # noqa: E402

from base import evaluate  # noqa: E402

PAPER, INK, DOT = (250, 249, 247), (70, 68, 74), (226, 92, 66)
TILE, GAP, LABEL = 128, 8, 34


def combinations() -> list[evaluate.Combo]:
    """Forty combinations, row by row."""
    colours, places = list(scene.COLOURS), list(scene.PLACES)
    return [
        (creature, colours[(x + 3 * y) % len(colours)], accessory, places[(x + 2 * y) % len(places)])
        for y, accessory in enumerate(scene.ACCESSORIES)
        for x, creature in enumerate(scene.CLASSES)
    ]


def sheet(images: torch.Tensor, combos: list[evaluate.Combo], columns: int) -> Image.Image:
    """Pictures [N, 3, H, W] with what was asked for below each."""
    rows, held, font = -(-len(images) // columns), scene.held_out(), ImageFont.load_default(11)
    page = Image.new("RGB", (columns * (TILE + GAP) + GAP, rows * (TILE + LABEL + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(page)
    for i, (image, combo) in enumerate(zip(images, combos, strict=True)):
        x, y = GAP + i % columns * (TILE + GAP), GAP + i // columns * (TILE + LABEL + GAP)
        tile = Image.fromarray((image * 255).round().byte().movedim(0, -1).numpy())
        page.paste(tile.resize((TILE, TILE), Image.Resampling.LANCZOS), (x, y))
        creature, colour, accessory, place = combo
        worn, where = ("" if word in ("none", "plain") else word for word in (accessory, place))
        draw.text((x + 2, y + TILE + 4), f"{colour} {creature}", INK, font)
        draw.text((x + 2, y + TILE + 18), ", ".join(word for word in (worn, where) if word), INK, font)
        if combo in held:
            draw.ellipse((x + TILE - 8, y + TILE + 8, x + TILE - 2, y + TILE + 14), DOT)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "grid.jpg")
    options = parser.parse_args()
    if options.comfyui is None:
        parser.error("no ComfyUI: give --comfyui or set COMFYUI_PATH")
    torch.set_num_threads(options.threads)
    out = options.out.resolve()
    host = evaluate.Host(options.comfyui.resolve(), options.checkpoint.resolve(), cpu=not torch.cuda.is_available())
    combos = combinations()
    drawn = [
        host.draw([scene.caption(*combo) for combo in combos[at : at + 8]], options.seed + at, options.steps, options.cfg, 64)
        for at in range(0, len(combos), 8)
    ]
    sheet(torch.cat(drawn), combos, len(scene.CLASSES)).save(out, quality=84, optimize=True)


if __name__ == "__main__":
    main()
