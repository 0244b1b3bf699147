"""Makes the workflow files and thumbnails that stand beside this script: laid out in the real front end, run on the miniature base.

For developers, after a change of a node's inputs or of the base:

    .kindred/env/bin/python dev/build/templates.py                   all of it
    .kindred/env/bin/python dev/build/templates.py --thumbnails      only runs them again, without a browser
    .kindred/env/bin/python dev/build/templates.py omega_sweep       this one

Starts a server of its own in `.kindred/base`. The layout needs the package `playwright` and Chromium; what it looks like is shown in
`.kindred/screenshots`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORKFLOWS_FOLDER = ROOT / "workflows"
os.environ.setdefault("COMFYUI_PATH", str(ROOT / ".kindred" / "host" / "0.30.0"))
sys.path[:0] = [str(HERE), str(ROOT / "dev" / "demo")]

import files  # noqa: E402
import run as demo  # noqa: E402
import workflow as workflows  # noqa: E402
from template_contents import WORKFLOWS, Workflow  # noqa: E402

CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SUBJECTS = {"my_dog": "biscuit", "my_cat": "marble"}  # the folders that the workflows name -> drawn subjects
PAPER, INK, WIDTH = "#1e1f22", "#f1f1f1", 960


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *WORKFLOWS], help="which (default: all)")
    parser.add_argument("--thumbnails", action="store_true", help="leave the workflow files as they are")
    parser.add_argument("--layout", action="store_true", help="leave the thumbnails as they are")
    parser.add_argument("--steps", type=int, help="of the trainings (default: 300 for each concept)")
    options = parser.parse_args()
    names = options.names or list(WORKFLOWS)
    settings = SimpleNamespace(checkpoint=None, cpu=not demo.has_card(), port=None)
    checkpoint = demo.prepare_checkpoint(settings)
    with demo.start(settings) as server:
        for folder, subject in SUBJECTS.items():
            prepare_photos(folder, subject)
        if not options.thumbnails:
            lay_out(server.address, names)
        if not options.layout:
            if "two_saved_concepts" in names:
                for folder, (token, word) in {"my_dog": ("<v1>", "dog"), "my_cat": ("<v2>", "cat")}.items():
                    train(server, checkpoint, folder, token, word)
            for name in names:
                thumbnail(server, name, WORKFLOWS[name], checkpoint, options.steps)


# -- the files -----------------------------------------------------------------------------------------------------------


def lay_out(address: str, names: list[str]) -> None:
    from playwright.sync_api import sync_playwright

    shots = ROOT / ".kindred" / "screenshots"
    shots.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium") or "/usr/bin/chromium", args=CHROMIUM)
        for name in names:
            # A visit of its own for each: the front end remembers widget values by node id, and the next file's nodes have the same ones.
            page = browser.new_context(viewport={"width": 1800, "height": 1100}).new_page()
            page.goto(address, timeout=300_000)
            page.wait_for_function(
                "window.app?.extensionManager && window.app.graph && Object.keys(LiteGraph.registered_node_types).length > 500", timeout=300_000
            )
            page.wait_for_timeout(3000)
            page.keyboard.press("Escape")  # the templates that greet a first visit
            what = WORKFLOWS[name]
            places = {str(index + 1): [node.x, node.y, node.width, node.height, title] for index, (title, node) in enumerate(what.nodes.items())}
            identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"kindred/workflows/{name}"))  # runs are told by it: two workflows must not share one
            made, folded = page.evaluate(LAY_OUT, [to_prompt(what), identity, places, what.groups, what.note, what.note_place])
            boxes = [group["bounding"] for group in made["groups"]] + [[*node["pos"], *node["size"]] for node in made["nodes"]]
            left, top, right, bottom = min(b[0] for b in boxes), min(b[1] for b in boxes) - 30, max(b[0] + b[2] for b in boxes), max(b[1] + b[3] for b in boxes)
            page.set_viewport_size({"width": int(right - left) + 600, "height": int(bottom - top) + 600})
            page.evaluate(
                "([x, y]) => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [x, y]; app.graph.setDirtyCanvas(true, true); }", [110 - left, 130 - top]
            )
            page.wait_for_timeout(1500)
            page.screenshot(path=shots / f"{name}.png", clip={"x": 100, "y": 120, "width": right - left + 20, "height": bottom - top + 20})
            print(f"{name}: {len(made['nodes'])} nodes; overlapping: {', '.join(overlaps(made)) or 'none'}")
            for node in made["nodes"]:  # as Nodes 2.0 shows them; the canvas, which folds nothing away, makes room by itself
                node["size"][1] -= folded[str(node["id"])]
            made["extra"]["kindred_template"] = True  # each copy gets an id of its own (web/old_files.js)
            (WORKFLOWS_FOLDER / f"{name}.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", "utf-8")
            page.context.close()
        browser.close()


def to_prompt(what: Workflow) -> dict:
    """The workflow in API form."""
    number = {title: str(index + 1) for index, title in enumerate(what.nodes)}

    def value(given):
        if isinstance(given, str) and given.startswith("@"):
            title, _, output = given[1:].rpartition(":")
            return [number[title], int(output)]
        return given

    return {
        number[title]: {"class_type": node.kind, "inputs": {key: value(given) for key, given in node.inputs.items()}, "_meta": {"title": title}}
        for title, node in what.nodes.items()
    }


def overlaps(made: dict) -> list[str]:
    """Pairs of nodes of which one covers a part of the other; a node's title stands 30 pixels above it."""
    boxes = [(node.get("title") or node["type"], *node["pos"], *node["size"]) for node in made["nodes"]]
    found = []
    for index, (one, x1, y1, w1, h1) in enumerate(boxes):
        for other, x2, y2, w2, h2 in boxes[index + 1 :]:
            if x1 < x2 + w2 and x2 < x1 + w1 and y1 - 30 < y2 + h2 and y2 - 30 < y1 + h1:
                found.append(f"{one} / {other}")
    return found


LAY_OUT = """async ([prompt, identity, places, groups, note, notePlace]) => {
  await app.loadApiJson(prompt, 'kindred.json');
  app.graph.id = identity;
  await new Promise(done => setTimeout(done, 1500));
  for (const node of app.graph._nodes) {
    const [x, y, w, h, title] = places[node.id];
    node.pos = [x, y]; node.title = title;
    for (const widget of node.widgets ?? []) if (widget.name === 'control_after_generate') widget.value = 'fixed';  // a comparison keeps its seed
    node.setSize([Math.max(w, node.computeSize()[0]), Math.max(h, node.computeSize()[1])]);
  }
  const text = LiteGraph.createNode('MarkdownNote');
  app.graph.add(text); text.pos = notePlace.slice(0, 2); text.setSize(notePlace.slice(2)); text.widgets[0].value = note; text.title = 'What this does';
  for (const [title, x, y, w, h] of groups) {
    const group = new LiteGraph.LGraphGroup(title); group.pos = [x, y]; group.size = [w, h]; group.color = '#3f789e'; app.graph.add(group);
  }
  app.graph.setDirtyCanvas(true, true);
  app.canvas.ds.reset(); app.canvas.ds.scale = 0.62; app.canvas.ds.offset = [130, 110];
  const { heightOfAdvanced } = await import('/extensions/ComfyUI-Kindred/host.js');
  const folded = app.graph._nodes.map(node => [node.id, node.comfyClass?.startsWith('Kindred') ? heightOfAdvanced(node) : 0]);
  return [app.graph.serialize(), Object.fromEntries(folded)];
}"""


# -- the thumbnails ------------------------------------------------------------------------------------------------------


def prepare_photos(folder: str, subject: str) -> None:
    content, _ = files.drawn(subject)
    place = demo.BASE / "input" / folder
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for name, data in content.items():
        (place / name).write_bytes(data)


def thumbnail(server, name: str, what: Workflow, checkpoint: str, steps: int | None) -> None:
    """Run the file as it lies here on the miniature base and make a picture of what it shows."""
    prompt = workflows.to_prompt(workflows.load(WORKFLOWS_FOLDER / f"{name}.json"), server.get("/object_info", timeout=120))
    fit(prompt, checkpoint, steps)
    previews = demo.BASE / "output" / "kindred" / "runs"
    shutil.rmtree(previews, ignore_errors=True)
    result = server.run(prompt)
    rows = [[(title if len(what.shown) > 2 else "", picture(data)) for title in what.shown for data in result.images.get(workflows.node_id(prompt, title), ())]]
    if not rows[0]:  # a training: what it was shown, and what it drew on the way
        photos = sorted((demo.BASE / "input" / "my_dog").glob("*.png"))[:4]
        drawn = sorted(previews.rglob("step-*.png"))[-4:]
        rows = [[("photos" if not index else "", picture(path.read_bytes())) for index, path in enumerate(photos)]]
        rows += [[(f"step {int(path.stem[5:])}", picture(path.read_bytes())) for path in drawn]]
    sheet = arranged(rows)
    sheet.save(WORKFLOWS_FOLDER / f"{name}.jpg", quality=88)
    print(f"{name}.jpg: {sheet.width} x {sheet.height}")


def train(server, checkpoint: str, folder: str, token: str, word: str) -> None:
    """Train the photos of `folder` on their token's rows and save the concept under the folder's name."""
    prompt = workflows.to_prompt(workflows.load(WORKFLOWS_FOLDER / "train_a_concept.json"), server.get("/object_info", timeout=120))
    fit(prompt, checkpoint, 100)
    workflows.find(prompt, "Photos")["folder"] = folder
    workflows.find(prompt, "Concept").update(token=token, class_word=word)
    settings = {"method": "kv + token", "learning_rate": 1e-3, "method.token_learning_rate": 5e-2, "spl_weight": 1.0, "preview_every": 0}
    workflows.find(prompt, "Train").update(settings)
    workflows.find(prompt, "Save").update(name=folder)
    server.run(prompt)


def fit(prompt: dict, checkpoint: str, steps: int | None) -> None:
    """What the miniature base needs in place of Stable Diffusion 1.5's settings: 64 pixels, and the demo's way to train."""
    steps = steps or 300 * sum(node["class_type"] == "KindredConcept" for node in prompt.values())
    for node in prompt.values():
        inputs, kind = node["inputs"], node["class_type"]
        if kind == "CheckpointLoaderSimple":
            inputs["ckpt_name"] = checkpoint
        elif kind == "EmptyLatentImage":
            inputs.update(width=inputs["width"] // 8, height=inputs["height"] // 8)
        elif kind == "KindredTrain":
            inputs.update({**demo.SMALL.training, "steps": steps, "resolution": demo.SMALL.resolution})
            inputs.update(preview_every=max(1, steps // 4), preview_prompt="a photo of a {token} {class} wearing headphones on the beach", preview_cfg=5.0)
        elif kind == "KindredSave":
            inputs["overwrite"] = True
        if "cfg" in inputs:
            inputs["cfg"] = 5.0
        if kind in ("KSampler", "KindredKSampler", "BasicScheduler"):
            inputs["steps"] = 20


def picture(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    factor = -(-256 // image.height)
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST) if factor > 1 else image


def arranged(rows: list[list[tuple[str, Image.Image]]]) -> Image.Image:
    """Labelled pictures in rows of one height each, on dark paper, `WIDTH` wide."""
    gap, band, font = 14, 44, ImageFont.load_default(24)
    made = []
    for row in rows:
        height = min(420, max(image.height for _, image in row))
        images = [(label, image.resize((round(image.width * height / image.height), height), Image.Resampling.LANCZOS)) for label, image in row]
        width = sum(image.width for _, image in images) + gap * (len(images) + 1)
        top = band if any(label for label, _ in images) else gap
        strip, x = Image.new("RGB", (width, top + height), PAPER), gap
        for label, image in images:
            ImageDraw.Draw(strip).text((x + image.width / 2, top / 2), label, INK, font, anchor="mm")
            strip.paste(image, (x, top))
            x += image.width + gap
        made.append(strip.resize((WIDTH, round(strip.height * WIDTH / strip.width)), Image.Resampling.LANCZOS))
    sheet = Image.new("RGB", (WIDTH, sum(strip.height for strip in made) + gap), PAPER)
    y = 0
    for strip in made:
        sheet.paste(strip, (0, y))
        y += strip.height
    return sheet


if __name__ == "__main__":
    main()
