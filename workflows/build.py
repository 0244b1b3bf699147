"""Lays the example workflows out in the real front end and writes the JSON files and thumbnails that stand beside this script.

For developers, after a change of a node's inputs:  python workflows/build.py http://127.0.0.1:8188
Needs a running ComfyUI with the pack (`python kindred.py serve`), the package `playwright` and Chromium.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).resolve().parent
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

# title -> (class, x, y, width, height, inputs); an input "@Title:output" is a link
TRAIN = {
    "Base model": ("CheckpointLoaderSimple", 0, 60, 320, 100, {"ckpt_name": "v1-5-pruned-emaonly-fp16.safetensors"}),
    "Photos": ("KindredPhotos", 0, 240, 320, 110, {"folder": "my_dog"}),
    "Concept": (
        "KindredConcept",
        380,
        240,
        380,
        420,
        {"images": "@Photos:0", "masks": "@Photos:1", "captions": "@Photos:2", "token": "<v1>", "class_word": "dog"},
    ),
    "Train": (
        "KindredTrain",
        820,
        60,
        380,
        600,
        {
            "model": "@Base model:0",
            "clip": "@Base model:1",
            "vae": "@Base model:2",
            "concepts.concept_0": "@Concept:0",
            "method": "kv + token",
            "spl_weight": 1.0,
            "prior_weight": 1.0,
            "steps": 500,
            "batch_size": 2,
            "learning_rate": 0.0,
            "resolution": 512,
            "seed": 0,
            "preview_every": 100,
            "resume": "new run",
        },
    ),
    "Save": ("KindredSave", 1260, 60, 360, 220, {"lora": "@Train:2", "tokens": "@Train:3", "name": "my_dog", "overwrite": False, "dtype": "float16"}),
    "Loss": ("LossGraphNode", 1260, 340, 360, 320, {"loss": "@Train:4", "filename_prefix": "loss"}),
}
COMPARE = {
    "Base model": ("CheckpointLoaderSimple", 0, 60, 320, 100, {"ckpt_name": "v1-5-pruned-emaonly-fp16.safetensors"}),
    "Load": ("KindredLoad", 0, 230, 320, 150, {"model": "@Base model:0", "clip": "@Base model:1", "name": "my_dog", "strength": 1.0}),
    "Size": ("EmptyLatentImage", 0, 450, 320, 110, {"width": 512, "height": 512, "batch_size": 1}),
    "Prompt": ("CLIPTextEncode", 400, 60, 400, 140, {"clip": "@Load:1", "text": "a photo of a <v1> dog wearing headphones on the beach"}),
    "Class prompt": ("CLIPTextEncode", 400, 260, 400, 140, {"clip": "@Base model:1", "text": "a photo of a dog dog wearing headphones on the beach"}),
    "Negative": ("CLIPTextEncode", 400, 460, 400, 110, {"clip": "@Base model:1", "text": ""}),
    "SLERP": (
        "KindredConditioningSLERP",
        400,
        640,
        400,
        330,
        {"conditioning": "@Prompt:0", "class_conditioning": "@Class prompt:0", "alpha": 0.2, "beta": 0.5, "norm": "midpoint", "align": "position"},
    ),
    "CFG": (
        "KSampler",
        880,
        60,
        320,
        300,
        {
            "model": "@Load:0",
            "positive": "@Prompt:0",
            "negative": "@Negative:0",
            "latent_image": "@Size:0",
            "seed": 1,
            "steps": 30,
            "cfg": 7.5,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1.0,
        },
    ),
    "Guidance": (
        "KindredKSampler",
        880,
        490,
        320,
        340,
        {
            "model": "@Load:0",
            "base_model": "@Base model:0",
            "positive": "@Prompt:0",
            "negative": "@Negative:0",
            "latent_image": "@Size:0",
            "omega": 0.6,
            "seed": 1,
            "steps": 30,
            "cfg": 7.5,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1.0,
        },
    ),
    "CFG with SLERP": (
        "KSampler",
        880,
        950,
        320,
        300,
        {
            "model": "@Load:0",
            "positive": "@SLERP:0",
            "negative": "@Negative:0",
            "latent_image": "@Size:0",
            "seed": 1,
            "steps": 30,
            "cfg": 7.5,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1.0,
        },
    ),
}
for _name, _sampler, _y in (("plain CFG", "CFG", 60), ("Personalization Guidance", "Guidance", 490), ("Conditioning SLERP", "CFG with SLERP", 950)):
    COMPARE["Decode " + _name] = ("VAEDecode", 1250, _y, 240, 50, {"samples": f"@{_sampler}:0", "vae": "@Base model:2"})
    COMPARE[_name] = ("SaveImage", 1540, _y, 340, 330, {"images": f"@Decode {_name}:0", "filename_prefix": "kindred/" + _name})

WORKFLOWS = {
    "train_a_concept": (
        TRAIN,
        [
            ("1  base model and photos", -20, -20, 360, 400),
            ("2  what to call it", 360, 160, 420, 520),
            ("3  learn it without losing its kind", 800, -20, 420, 1120),
            ("4  keep it", 1240, -20, 400, 740),
        ],
        "Put three to six photos of one subject into a folder of ComfyUI's **input** folder, choose it in *Load Photos*, say in one word what it is (class_word), and queue.\n\n"
        "500 steps are what the paper takes for one subject; a preview is drawn every 100. Stopped? Set **resume** to *continue* and queue again.\n\n"
        "What was learned is saved as a LoRA and an embedding; *use_a_saved_concept* draws with it.",
        (0, 420, 320, 240),
    ),
    "use_a_saved_concept": (
        COMPARE,
        [
            ("1  the base model and the concept", -20, -20, 360, 600),
            ("2  say it", 380, -20, 440, 1010),
            ("3  draw it: plain CFG", 860, -20, 1040, 430),
            ("Personalization Guidance: guided by the weights between base and tuned, at the cost of CFG", 860, 420, 1040, 430),
            ("Conditioning SLERP: the prompt turned back toward its kind", 860, 880, 1040, 430),
        ],
        "The prompt names the subject by its token. The class prompt is the same one with the class word in the token's place, encoded by the base model's CLIP.\n\n"
        "**omega** 0 to 0.3 favours the subject, 0.4 to 0.6 balances, 1 is plain CFG. **alpha** 0.1 to 0.3 brings back what the prompt asks for beside the subject.",
        (0, 620, 320, 300),
    ),
}


def main(address: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=CHROMIUM)
        page = browser.new_page(viewport={"width": 1800, "height": 1100})
        page.goto(address)
        page.wait_for_function("window.app?.extensionManager && window.app.graph && Object.keys(LiteGraph.registered_node_types).length > 500", timeout=120_000)
        page.wait_for_timeout(3000)
        page.keyboard.press("Escape")  # the templates that greet a first visit
        for name, (nodes, groups, note, note_place) in WORKFLOWS.items():
            workflow = page.evaluate(
                LAY_OUT, [prompt(nodes), {str(index + 1): [*nodes[title][1:5], title] for index, title in enumerate(nodes)}, groups, note, note_place]
            )
            boxes = [group["bounding"] for group in workflow["groups"]] + [[*node["pos"], *node["size"]] for node in workflow["nodes"]]
            bounds = [min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[0] + b[2] for b in boxes), max(b[1] + b[3] for b in boxes)]
            (HERE / f"{name}.json").write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", "utf-8")
            page.wait_for_timeout(1000)
            left, top, right, bottom = bounds
            page.set_viewport_size({"width": int(right - left) + 600, "height": int(bottom - top) + 600})
            page.evaluate(
                "([x, y]) => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [x, y]; app.graph.setDirtyCanvas(true, true); }", [110 - left, 130 - top]
            )
            page.wait_for_timeout(1500)
            shot = page.screenshot(clip={"x": 100, "y": 120, "width": right - left + 20, "height": bottom - top + 20})
            picture = Image.open(io.BytesIO(shot)).convert("RGB")
            picture.resize((1400, round(1400 * picture.height / picture.width)), Image.Resampling.LANCZOS).save(HERE / f"{name}.jpg", quality=86)
            print(name, len(workflow["nodes"]), "nodes")
        browser.close()


def prompt(nodes: dict) -> dict:
    """The workflow in API form."""
    number = {title: str(index + 1) for index, title in enumerate(nodes)}

    def value(given):
        if isinstance(given, str) and given.startswith("@"):
            title, _, output = given[1:].rpartition(":")
            return [number[title], int(output)]
        return given

    return {
        number[title]: {"class_type": node[0], "inputs": {key: value(given) for key, given in node[5].items()}, "_meta": {"title": title}}
        for title, node in nodes.items()
    }


LAY_OUT = """async ([prompt, places, groups, note, notePlace]) => {
  await app.loadApiJson(prompt, 'kindred.json');
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
  return app.graph.serialize();
}"""

if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8188")
