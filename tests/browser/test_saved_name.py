"""Save Concept in front of a real run: the name that was used can be read on the node."""

import json
import uuid

import pytest
from kindred_testing import ROOT
from kindred_testing.browser import missing
from kindred_testing.server import TestServer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]

SHOWN = """() => {
    const save = app.graph._nodes.find((node) => node.type === "KindredSave");
    const seen = [...document.querySelectorAll(".kindred-report")].filter((element) => {
        const box = element.getBoundingClientRect();
        return box.width > 100 && box.height > 30 && element.scrollHeight <= element.clientHeight + 1;
    });
    return { output: save.outputs.map((output) => output.name), texts: seen.map((element) => element.innerText) };
}"""


def test_the_name_that_was_used_stands_first_on_the_node(page, tmp_path):
    """Case 47, and 59: one step, with core's plot of its only loss in the same graph."""
    workflow = json.loads((ROOT / "workflows" / "train_a_concept.json").read_text("utf-8"))
    workflow["id"] = str(uuid.uuid4())
    file = tmp_path / f"saved-{workflow['id'][:8]}.json"
    file.write_text(json.dumps(workflow), "utf-8")
    page.drop(file)
    name = f"shown-{page.renderer}"
    train = {"steps": 1, "resolution": "64", "batch_size": 1, "preview_every": 0, "run_name": name}
    fixed = {"CheckpointLoaderSimple": {"ckpt_name": TestServer.CHECKPOINT}, "KindredPhotos": {"folder": "browser"}}
    for seed, saved in ((1, name), (2, f"{name}_2")):
        page.probe("set", {**fixed, "KindredSave": {"name": name, "overwrite": False}, "KindredTrain": {**train, "seed": seed}})
        page.page.evaluate("() => app.queuePrompt(0)")
        page.probe("look", ["KindredSave"], 1.4)
        page.page.wait_for_function(f"() => ({SHOWN})().texts.some((text) => text.startsWith('Saved as {saved}\\n'))", timeout=120_000)
    shown = page.page.evaluate(SHOWN)
    assert shown["output"] == ["name"]
    assert shown["texts"][0].splitlines()[:2] == [f"Saved as {name}_2", f"The name '{name}' was taken: kindred/{name}.safetensors."]
    page.page.wait_for_timeout(600)
    page.screenshot(f"saved-name-{page.renderer}")
    page.page.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.page.wait_for_function("() => app.graph._nodes.every((node) => node.type !== 'KindredSave')")
    page.page.locator(".workflow-tab", has_text=file.stem).first.click()
    page.page.wait_for_function("() => app.graph._nodes.some((node) => node.type === 'KindredSave')")
    page.probe("look", ["KindredSave"], 1.4)
    page.page.wait_for_function(f"() => ({SHOWN})().texts.some((text) => text.startsWith('Saved as {name}_2\\n'))", timeout=60_000)
