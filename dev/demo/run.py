"""`kindred.py demo` and `kindred.py serve`, inside the environment: a server of our own, two workflows, one picture."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # not the pack's root: its `nodes` would shadow the host's

import compare
import processor
import workflow as workflows
from files import BASE, ROOT, STORED, Failure, keep, link, prepare_checkpoint, prepare_judge, prepare_photos
from grid import Column, comparison
from options import parse
from PIL import Image
from server import ComfyServer, Interrupted, PromptError, free_port

PROMPTS = ("wearing headphones", "on the beach")  # for a real model
WORLD_PROMPTS = (
    "wearing headphones on the beach",
    "wearing a hat on the moon",
    "wearing a scarf in the city",
    "wearing glasses in the snow",
    "wearing a hat in the kitchen",
    "in the city",
)


@dataclass(frozen=True)
class Scale:
    """What fits a base model: the miniature one learns in a minute, a real one as the papers say."""

    resolution: int
    training: dict  # inputs of the Train node, where they are not the workflow's
    sampling_steps: int
    cfg: float
    pictures: int  # of each prompt
    ways: tuple[compare.Way, ...]
    prompts: tuple[str, ...]


SMALL = Scale(
    64,
    # No augmentation: the miniature world's base knows creatures of one size, and no words for far and near.
    {
        "steps": 60,
        "batch_size": 4,
        "method": "lora + token",
        "method.rank": 16,
        "method.targets": "attention + feed-forward",
        "method.train_text_encoder": True,
        "learning_rate": 1e-3,
        "method.text_learning_rate": 1e-3,
        "method.token_learning_rate": 5e-2,
        "augment": False,
    },
    10,
    5.0,
    2,
    compare.SMALL,
    WORLD_PROMPTS,
)
REAL = Scale(512, {"method": "lora + token", "method.rank": 16, "method.targets": "attention", "steps": 500}, 30, 7.5, 1, compare.REAL, PROMPTS)


def main() -> int:
    options = parse(sys.argv[1:])
    # Line by line also into a pipe or a file: somebody is waiting.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    try:
        return serve(options) if options.command == "serve" else demo(options)
    except (Failure, PromptError, RuntimeError, OSError, ValueError) as error:
        print(f"\nkindred: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, Interrupted):
        print("\nkindred: stopped; the server has ended.", file=sys.stderr)
        return 130


def serve(options) -> int:
    checkpoint = prepare_checkpoint(options)
    with start(options) as server:
        return stay(server, checkpoint)


def demo(options) -> int:
    started = time.monotonic()
    scale = REAL if options.checkpoint else SMALL
    checkpoint = prepare_checkpoint(options)
    folder, photos, class_word = prepare_photos(options)
    with start(options) as server:
        names = {}  # the names that the node saved under: an earlier run's concept keeps its own
        for training in dict.fromkeys(way.training for way in scale.ways):
            wished = options.name if training == compare.KEPT else f"{options.name}-{training}"
            names[training] = learn(server, options, scale, checkpoint, folder, class_word, wished, training)
        side, cfg = options.resolution or scale.resolution, options.cfg or scale.cfg
        drawing = compare.Drawing(checkpoint, names, side, scale.pictures, options.seed, scale.sampling_steps, cfg, options.omega, options.alpha)
        sheet = draw(server, options, scale, drawing, photos, class_word)
        name = names[compare.KEPT]
        out = keep(sheet, BASE / "output" / "kindred", name)
        print(f"\nkindred: done in {time.monotonic() - started:.0f} s; the concept is {name!r}")
        for what, path in (
            ("comparison", out),
            ("LoRA", BASE / "models" / "loras" / "kindred" / f"{name}.safetensors"),
            ("token", BASE / "models" / "embeddings" / f"{name}.safetensors"),
        ):
            print(f"  {what:<11} {path}")
        return stay(server, checkpoint) if options.serve else 0


def learn(server: ComfyServer, options, scale: Scale, checkpoint: str, folder: str, class_word: str, name: str, training: str) -> str:
    """One training by the workflow, saved under `name` or, where that is taken, with a number behind it. The name that it got."""
    train = workflows.to_prompt(workflows.load(ROOT / "workflows" / "train_a_concept.json"), server.get("/object_info", timeout=120))
    workflows.find(train, "Base model")["ckpt_name"] = checkpoint
    workflows.find(train, "Photos")["folder"] = folder
    workflows.find(train, "Concept").update(token=options.token, class_word=class_word)
    settings = {**scale.training, "resolution": options.resolution or scale.resolution, "seed": options.seed, "preview_every": 0}
    settings["spl_weight"] = 1.0 if training == compare.KEPT else 0.0
    if options.steps:
        settings["steps"] = options.steps
    if options.learning_rate:
        settings.update({"learning_rate": options.learning_rate, "method.token_learning_rate": options.learning_rate})
    workflows.find(train, "Train").update(settings)
    workflows.find(train, "Save").update(name=name, overwrite=False)
    how = "with the Semantic Preservation Loss" if settings["spl_weight"] else "plainly"
    print(f"kindred: training {options.token} ({class_word}) {how}, {settings['steps']} steps")
    saved = server.run(train, TrainingLine())
    lines = saved.ui[workflows.node_id(train, "Save")]["text"][0].splitlines()
    print("\n".join(f"         {line}" for line in lines))
    return lines[0].removeprefix("Saved as ")


def draw(server: ComfyServer, options, scale: Scale, drawing: compare.Drawing, photos: list[Image.Image], class_word: str) -> Image.Image:
    """Every prompt in every way, scored where the miniature world's judge knows what is asked for; the comparison picture."""
    templates = options.prompt or [f"a photo of a {{token}} {{class}} {scene}" for scene in scale.prompts]
    prompts = [template.replace("{token}", options.token).replace("{class}", class_word) for template in templates]
    workflow = workflows.to_prompt(workflows.load(ROOT / "workflows" / "use_a_saved_concept.json"), server.get("/object_info", timeout=120))
    told = compare.scores(photos) if scale is SMALL and STORED.is_file() and not options.prompt else None
    cells, columns = [], []
    for way in scale.ways:
        print(f"kindred: drawing {len(prompts)} prompts, {way.title}")
        drawn = [compare.draw(server, workflow, way, drawing, prompt) for prompt in prompts]
        cells.append(drawn)
        lines = told([one for row in drawn for one in row], [prompt for prompt, row in zip(prompts, drawn, strict=True) for _ in row]) if told else ()
        print("".join(f"         {line}\n" for line in lines), end="")
        columns.append(Column(way.title, way.subtitle.format(omega=drawing.omega, alpha=drawing.alpha), lines))
    rows = [(prompt, [column[index] for column in cells]) for index, prompt in enumerate(prompts)]
    base = options.checkpoint.name if options.checkpoint else "the miniature world's own"
    footer = f"same seeds in each row; guidance scale {drawing.cfg:g}; base model: {base}"
    if told:
        footer += f".  Scores over {len(prompts) * drawing.count} pictures by a judge trained on renders: is all of the prompt there, how like the photos; 95% intervals."
    return comparison(f"{options.token} is a {class_word}", photos, columns, rows, footer)


class TrainingLine:
    """The running line of a training: steps, loss, time left. In a terminal it stays one line."""

    def __call__(self, kind: str, data: dict) -> None:
        if kind != "kindred.training":
            return
        left = data["seconds_left"]
        clock = "" if left is None else f"   {round(left) // 60}:{round(left) % 60:02d} left"
        filled = round(24 * data["step"] / data["steps"])
        line = f"  [{'#' * filled}{'.' * (24 - filled)}] {data['step']}/{data['steps']}   loss {data['loss']:.4f}   spl {data['spl']:.4f}{clock}"
        last = data["step"] == data["steps"]
        if sys.stdout.isatty():
            print(f"\r{line:<100}", end="\n" if last else "", flush=True)
        elif last or data["step"] % max(1, data["steps"] // 10) == 0:
            print(line)


# -- the server ----------------------------------------------------------------------------------------------------------


@contextmanager
def start(options) -> Iterator[ComfyServer]:
    """A server of this run's own. Its log stays where something went wrong."""
    for name in ("custom_nodes", "input", "output", "user", "models/checkpoints", "models/loras", "models/embeddings"):
        (BASE / name).mkdir(parents=True, exist_ok=True)
    link(ROOT, BASE / "custom_nodes" / "ComfyUI-Kindred")
    prepare_judge(BASE)
    on_processor = options.cpu or not has_card()
    print("kindred: starting ComfyUI ...")
    arguments, environment = (processor.SWITCHES, processor.ENVIRONMENT) if on_processor else ((), {})
    port = options.port or free_port()
    server = ComfyServer(Path(os.environ["COMFYUI_PATH"]), BASE, arguments, BASE / f"server-{port}.log", port, environment)
    try:
        with server:
            yield server
    except KeyboardInterrupt:
        server.log.unlink(missing_ok=True)
        raise
    server.log.unlink(missing_ok=True)


def stay(server: ComfyServer, checkpoint: str) -> int:
    try:
        print(f"\nkindred: ComfyUI with Kindred runs at {server.address} (model {checkpoint}); the workflows are in {ROOT / 'workflows'}. Ctrl-C ends it.")
        assert server.process is not None  # it has started
        server.process.wait()
    except KeyboardInterrupt:
        print("\nkindred: stopped; the server has ended.")
        return 0
    raise Failure(f"ComfyUI ended by itself. The end of {server.log}:\n{server.log_tail()}")


def has_card() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


if __name__ == "__main__":
    sys.exit(main())
