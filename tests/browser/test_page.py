"""The pack in the real front end, in both of its node renderers: nodes, workflows dropped as files, and the panel during a real training."""

import json
import time
import uuid

import pytest
import torch
from kindred_testing import ROOT
from kindred_testing.browser import RENDERERS, Page, browser, missing
from kindred_testing.server import TestServer
from safetensors.torch import save_file

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]

STEPS = 12
TINY = {
    "CheckpointLoaderSimple": {"ckpt_name": TestServer.CHECKPOINT},
    "KindredPhotos": {"folder": "browser"},
    "KindredTrain": {"steps": STEPS, "resolution": 64, "batch_size": 1, "learning_rate": 1e-3, "preview_every": 6},
    "KindredSave": {"name": "browser", "overwrite": True},
}


@pytest.fixture(scope="module")
def chromium(server):
    server.noise_photos("browser")
    saved = server.base / "models" / "loras" / "kindred" / "in-a-list.safetensors"  # a list without an entry has no value to keep
    saved.parent.mkdir(parents=True, exist_ok=True)
    save_file({"diffusion_model.out.2.diff_b": torch.zeros(4)}, saved)
    with browser() as running:
        yield running
    saved.unlink()


@pytest.fixture(scope="module", params=RENDERERS)
def page(request, chromium, server):
    opened = Page(chromium, server, request.param)
    yield opened
    opened.page.close()


@pytest.fixture(autouse=True)
def quiet_console(request):
    page = request.getfixturevalue("page") if "page" in request.fixturenames else None
    if page:
        page.errors.clear()
    yield
    assert page is None or page.errors == []


def test_each_node_mounts_connects_and_is_saved_without_loss(page, server):
    """Every widget at another value than its default, every input connected, every choice of a dynamic combo; then saved and opened again."""
    info = {name: node for name, node in server.get("/object_info", timeout=120).items() if name.startswith("Kindred")}
    assert len(info) >= 14
    for name, node in info.items():
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        combos = [(key, [option["key"] for option in given[1]["options"]]) for key, given in inputs.items() if given[0] == "COMFY_DYNAMICCOMBO_V3"]
        choices = [(key, option) for key, options in combos for option in options] or [None]
        for choice in choices:
            where = f"{name} {choice or ''} in {page.renderer}"
            built = page.probe("build", name, choice)
            assert built["unconnected"] == [], where
            mounted = page.probe("mounted", built["id"])
            assert (mounted["element"] is not None) == (page.renderer == "vue"), where
            if mounted["element"]:
                assert not mounted["element"]["error"] and mounted["element"]["height"] > 40, where
            assert mounted["panel"] == (name == "KindredTrain"), where
            assert mounted["hint"] == (name != "KindredDrift" and bool({"omega", "alpha"} & set(built["widgets"]))), where  # there alpha is advanced
            trip = page.probe("roundTrip")
            assert trip["before"] == trip["after"], where
            assert trip["first"] == trip["again"], where
            assert None not in json.loads(trip["first"])[0], f"{where}: {trip['first']}"


@pytest.mark.parametrize("file", sorted((ROOT / "workflows").glob("*.json")), ids=lambda file: file.stem)
def test_a_workflow_dropped_as_a_file_opens_whole(page, file):
    page.drop(file)
    wanted = json.loads(file.read_text("utf-8"))
    opened = page.page.evaluate("() => app.graph._nodes.map(node => [node.type, node.type in LiteGraph.registered_node_types])")
    assert sorted(kind for kind, _ in opened) == sorted(node["type"] for node in wanted["nodes"])
    assert all(known for _, known in opened), opened
    page.probe("look", None, 0.5)
    page.page.wait_for_timeout(400)
    page.screenshot(f"{file.stem}-{page.renderer}")


def test_workflows_have_ids_of_their_own():
    """The front end keeps values by the workflow's id and the node's: two files of one id in one session would mix them up."""
    ids = [json.loads(file.read_text("utf-8")).get("id") for file in (ROOT / "workflows").glob("*.json")]
    assert len(set(ids)) == len(ids) and all(ids) and not any(set(each) <= set("0-") for each in ids), ids


def test_the_panel_draws_a_real_run_through_a_reload_and_keeps_it_in_the_workflow(page, server, tmp_path):
    workflow = json.loads((ROOT / "workflows" / "train_a_concept.json").read_text("utf-8"))
    workflow["id"] = str(uuid.uuid4())  # of this renderer alone: the server still tells the other's run of the file's own id
    own = tmp_path / "train_a_concept.json"
    own.write_text(json.dumps(workflow), "utf-8")
    page.drop(own)
    page.probe("set", {**TINY, "KindredTrain": {**TINY["KindredTrain"], "seed": list(RENDERERS).index(page.renderer) + 1}})
    (empty,) = page.probe("panels")
    assert empty["visible"] and empty["state"] == "empty"
    page.page.evaluate("() => app.queuePrompt(0)")
    running = wait(page, lambda panel: panel["step"] >= 3 and panel["loss"].count("L") >= 2)
    assert f"/ {STEPS}" in running["text"] and "<v1>" in running["text"] and running["spl"]

    page.reload()
    back = wait(page, lambda panel: panel["step"] > running["step"] and len(panel["loss"]) > len(running["loss"]))
    assert back["state"] == "running"
    page.probe("look", ["KindredTrain"], 1.2)
    page.screenshot(f"panel-running-{page.renderer}")

    done = wait(
        page,
        lambda panel: panel["state"] == "done" and (panel["saved"] or {}).get("id") == panel["run"] and len(panel["previews"]) == 2 and all(panel["previews"]),
    )
    assert done["step"] == STEPS and done["loss"].count("L") == STEPS - 1, "all steps, also those that no event told"
    trip = page.probe("roundTrip")
    assert trip["before"] == trip["after"]
    again = wait(page, lambda panel: panel["loss"] and panel["run"] == done["run"])
    assert again["loss"] == done["loss"] and again["saved"] == done["saved"]
    assert len(json.dumps(done["saved"])) < 12_000
    page.probe("look", ["KindredTrain"], 1.2)
    page.page.wait_for_timeout(400)
    page.screenshot(f"panel-done-{page.renderer}")


def wait(page, condition, seconds: float = 240) -> dict:
    """The first panel, as soon as it meets the condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        panels = page.probe("panels")
        if panels and condition(panels[0]):
            return panels[0]
        page.page.wait_for_timeout(150)
    raise AssertionError(f"the panel never came there: {panels}")
