"""The example workflows as people drag them in: known to the server, complete, and run from the file to the picture."""

import io
import json
import re

import numpy as np
import pytest
from kindred_testing import ROOT, later_inputs, script
from PIL import Image

workflows = script("dev/demo/workflow.py")
contents = script("dev/build/template_contents.py")
FILES = sorted((ROOT / "workflows").glob("*.json"))
NAMES = {"train_a_concept", "use_a_saved_concept", "compare_guidance", "omega_sweep", "tea_and_drift", "two_concepts", "two_saved_concepts"}


def test_the_promised_ones_are_there_with_their_thumbnails():
    assert {path.stem for path in FILES} == NAMES
    for path in FILES:
        with Image.open(path.with_suffix(".jpg")) as thumbnail:
            assert thumbnail.width >= 600 and np.asarray(thumbnail).std() > 10
        workflow = json.loads(path.read_text("utf-8"))
        assert len(workflow["groups"]) >= 3 and [node for node in workflow["nodes"] if node["type"] == "MarkdownNote"]


def test_notes_and_groups_say_what_their_source_says():
    for path in FILES:
        workflow, source = json.loads(path.read_text("utf-8")), contents.WORKFLOWS[path.stem]
        assert [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote"] == [source.note], path.stem
        assert [group["title"] for group in workflow["groups"]] == [title for title, *_ in source.groups], path.stem


@pytest.fixture(scope="module")
def info(server):
    for folder in ("my_dog", "my_cat"):
        server.noise_photos(folder, len(folder), 64, 64)
    return server.get("/object_info", timeout=120)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_every_node_and_input_is_known_and_none_is_missing(info, file):
    for node in workflows.to_prompt(workflows.load(file), info).values():
        known = info[node["class_type"]]["input"]
        names = {name.split(".")[0] for name in node["inputs"]} - later_inputs()
        assert names <= set(known.get("required", {})) | set(known.get("optional", {})), node["class_type"]
        assert not {name for name in known.get("required", {}) if name.split(".")[0] not in names}, node["class_type"]


def cheap(prompt: dict, checkpoint: str) -> dict:
    """The same graph on the small base: few steps, small pictures, the concept that the first one saves."""
    smaller = {"ckpt_name": checkpoint, "width": 64, "height": 64, "resolution": 64, "batch_size": 1, "preview_every": 0}
    for node in prompt.values():
        inputs = node["inputs"]
        inputs.update(
            {
                name: value
                for name, value in smaller.items()
                if isinstance(inputs.get(name), (str, int)) and node["class_type"] != "ConditioningSetAreaPercentage"
            }
        )
        if "steps" in inputs:
            inputs["steps"] = 1  # case 59: one loss alone has no scale, and core's plot divides by it
        if node["class_type"] == "KindredSave":
            inputs["overwrite"] = True
    return prompt


@pytest.mark.parametrize("file", sorted(FILES, key=lambda path: path.stem != "train_a_concept"), ids=lambda path: path.stem)
def test_it_runs_from_the_file_to_the_picture(server, info, file):
    needed = {"train_a_concept": (), "two_saved_concepts": (("my_dog", "<v1>"), ("my_cat", "<v2>"))}.get(file.stem, (("my_dog", "<v1>"),))
    for name, token in needed:
        if not (server.base / f"models/loras/kindred/{name}.safetensors").exists():  # run alone
            train = cheap(workflows.to_prompt(workflows.load(FILES[0].with_name("train_a_concept.json")), info), server.CHECKPOINT)
            workflows.find(train, "Concept")["token"], workflows.find(train, "Save")["name"] = token, name
            server.run(train)
    server.get("/object_info/KindredLoad")
    prompt = cheap(workflows.to_prompt(workflows.load(file), info), server.CHECKPOINT)
    result = server.run(prompt)
    ends = [number for number, node in prompt.items() if node["class_type"] in ("SaveImage", "LossGraphNode")]
    assert ends and all(result.images[number] for number in ends)
    for number in ends:
        for data in result.images[number]:
            picture = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            assert picture.std() > 1 and min(picture.shape[:2]) >= 64


def test_the_readme_and_notes_name_only_workflows_that_exist():
    said = (ROOT / "README.md").read_text("utf-8") + "".join(path.read_text("utf-8") for path in (ROOT / "web" / "docs").rglob("*.md"))
    assert set(re.findall(r"workflows/(\w+)\.(?:json|jpg)", said)) <= NAMES
