"""One picture of what token rows keep: the same prompts with the token and with the class word alone, drawn by the base, by plain K/V tuning and on token rows.

    python dev/bench/rows_picture.py [--subject marble] [--steps 80] [--rows token] [--seed 1]

Writes docs/class_kept.jpg. The subject, the prompts and the seed are chosen beforehand, not the pictures.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "dev" / "bench"))

from evidence import COMMON, KV  # noqa: E402
from lab import SIDE, Lab, Learned, Prompt, Way  # noqa: E402

SCENES = ("wearing headphones on the beach", "wearing a hat on the moon", "wearing a scarf in the snow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", default="marble")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--rows", default="token")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    lab = Lab(None, 1, 20)
    from grid import Column, comparison
    from PIL import Image
    from world import subjects

    word = subjects.SUBJECTS[options.subject].class_word
    wanted = [Prompt({}, f"a photo of a <v1> {word} {scene}", f"a photo of a {word} {scene}") for scene in SCENES]
    both = [*wanted, *(Prompt({}, one.class_text, one.class_text) for one in wanted)]

    def drawn(tuned) -> list[list[Image.Image]]:
        pictures = [lab.draw(tuned, both, Way(cfg=2.5), seed=options.seed + turn) for turn in range(2)]
        return [[_image(turn[at]) for turn in pictures] for at in range(len(both))]

    ways: dict[str, Learned | None] = {"base model": None}
    for title, rows in (("plain K/V tuning", "all"), ("on the token's rows", options.rows)):
        ways[title] = lab.learn(options.subject, **{**COMMON, **KV, "rows": rows, "spl_weight": 1.0, "steps": options.steps, "seed": options.seed})[
            options.steps
        ]
    cells = {title: drawn(tuned) for title, tuned in ways.items()}
    same = {
        title: sum(a.tobytes() == b.tobytes() for at in range(3, 6) for a, b in zip(some[at], cells["base model"][at], strict=True))
        for title, some in cells.items()
    }
    said = {"base model": "has never seen the subject", "plain K/V tuning": "every class word becomes it", "on the token's rows": "only the token is"}
    columns = [
        Column(title, said[title], ("without the token, the base's", f"picture bit for bit: {same[title]} of 6") if title != "base model" else ())
        for title in cells
    ]
    rows = [(one.text, [some[at] for some in cells.values()]) for at, one in enumerate(both)]
    footer = f"Same noise in each row. {options.steps} steps with SPL 1, guidance scale 2.5, 20 sampling steps, the miniature world's model; made by dev/bench/rows_picture.py."
    sheet = comparison(f"<v1> is this {word}; every other {word} stays as it was", subjects.photos(options.subject, SIDE), columns, rows, footer)
    path = ROOT / "docs" / "class_kept.jpg"
    sheet.save(path, quality=88)
    print(f"rows_picture: {path}")


def _image(picture):
    from PIL import Image

    return Image.fromarray((picture * 255).round().byte().movedim(0, -1).numpy())


if __name__ == "__main__":
    main()
