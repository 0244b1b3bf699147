"""The live panel on Train Concept in front of real trainings: reload, another tab, several trainers, stop and continue, dark and light."""

import json
import time
import uuid

import pytest
from kindred_testing import ROOT
from kindred_testing.browser import missing
from kindred_testing.server import TestServer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]

STEPS = 12
TRAIN = {"steps": STEPS, "resolution": "64", "batch_size": 1, "learning_rate": "1e-3", "preview_every": 6}
TINY = {
    "CheckpointLoaderSimple": {"ckpt_name": TestServer.CHECKPOINT},
    "KindredPhotos": {"folder": "browser"},
    "KindredSave": {"name": "browser", "overwrite": True},
}


@pytest.fixture
def opened(page, tmp_path):
    """A function that drops the training workflow with an id of its own (the server tells all runs of an id) and small settings; its tab's name."""

    def drop(**train) -> str:
        workflow = json.loads((ROOT / "workflows" / "train_a_concept.json").read_text("utf-8"))
        workflow["id"] = str(uuid.uuid4())
        file = tmp_path / f"panel-{workflow['id'][:8]}.json"
        file.write_text(json.dumps(workflow), "utf-8")
        page.drop(file)
        page.probe("set", {**TINY, "KindredTrain": {**TRAIN, "run_name": file.stem, "seed": int(workflow["id"][:6], 16), **train}})
        return file.stem

    return drop


def test_a_real_run_is_drawn_through_a_reload_and_kept_in_the_workflow(page, opened):
    opened()
    (empty,) = page.probe("panels")
    assert empty["visible"] and empty["state"] == "empty"
    queue(page)
    running = wait(page, lambda panel: panel["step"] >= 3 and panel["loss"].count("L") >= 2)
    assert f"/ {STEPS}" in running["text"] and "<v1>" in running["text"] and running["spl"]

    page.reload()
    back = wait(page, lambda panel: panel["step"] > running["step"] and len(panel["loss"]) > len(running["loss"]))
    assert back["state"] == "running"
    page.probe("look", ["KindredTrain"], 1.2)
    page.screenshot(f"panel-running-{page.renderer}")

    done = ended(page)
    assert len(done["previews"]) == 2 and all(done["previews"])
    assert done["step"] == STEPS and done["loss"].count("L") == STEPS - 1, "all steps, also those that no event told"
    trip = page.probe("roundTrip")
    assert trip["before"] == trip["after"]
    again = wait(page, lambda panel: panel["loss"] and panel["run"] == done["run"])
    assert again["loss"] == done["loss"] and again["saved"] == done["saved"]
    assert len(json.dumps(done["saved"])) < 12_000
    page.probe("look", ["KindredTrain"], 1.2)
    page.page.wait_for_timeout(400)
    page.screenshot(f"panel-done-{page.renderer}")


def test_a_new_copy_of_a_template_shows_no_old_run(page):
    """Runs are told apart by the workflow's id, which a template's copies would share."""
    template = ROOT / "workflows" / "train_a_concept.json"
    page.drop(template)
    page.probe("set", {**TINY, "KindredTrain": {**TRAIN, "steps": 2, "preview_every": 0, "seed": len(page.renderer)}})
    queue(page)
    first = ended(page)
    own, mark = page.page.evaluate("() => [app.graph.id, app.graph.serialize().extra.kindred_template ?? null]")
    page.drop(template)
    page.page.wait_for_timeout(1500)
    assert page.page.evaluate("() => app.graph.id") != own and mark is None
    (empty,) = page.probe("panels")
    assert first["run"] and (empty["run"], empty["state"]) == (None, "empty")


@pytest.mark.parametrize("page", ["vue"], indirect=True)  # passed in both on 2026-11-26; one of them saves a minute
def test_two_trainers_each_draw_their_own_run_while_another_workflow_is_looked_at(page, opened):
    tab = opened()
    page.probe("twin", {"steps": STEPS + 4, "seed": 7})
    queue(page)
    wait(page, lambda panel: panel["step"] >= 2)

    page.page.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    page.page.wait_for_function("() => app.graph._nodes.every((node) => node.type !== 'KindredTrain')")
    assert page.probe("panels") == []
    page.page.wait_for_timeout(1000)  # the run goes on behind its back
    page.page.locator(".workflow-tab", has_text=tab).first.click()
    page.page.wait_for_function("() => app.graph._nodes.some((node) => node.type === 'KindredTrain')")

    first, second = ended(page, 0), ended(page, 1)
    assert first["run"] != second["run"]
    assert [panel["loss"].count("L") for panel in (first, second)] == [STEPS - 1, STEPS + 3], "no step is missing, nor is one of the other's there"
    assert f"/ {STEPS}" in first["text"] and f"/ {STEPS + 4}" in second["text"]
    page.probe("look", ["KindredTrain"], 0.8)
    page.page.wait_for_timeout(400)
    page.screenshot(f"panel-twins-{page.renderer}")


@pytest.mark.parametrize("page", ["canvas"], indirect=True)
def test_a_stopped_run_says_where_it_is_and_is_continued_on_the_same_curve(page, opened):
    steps = 26
    opened(steps=steps, preview_every=0)
    queue(page)
    wait(page, lambda panel: panel["step"] >= 4)
    page.page.evaluate("() => app.extensionManager.command.execute('Comfy.Interrupt')")
    stopped = wait(page, lambda panel: panel["state"] == "stopped" and panel["saved"])
    assert 4 <= stopped["step"] < steps and "continue" in stopped["text"], stopped["text"]

    page.probe("set", {"KindredTrain": {"resume": "continue"}})
    page.theme("light")
    try:
        queue(page)
        # drawn from the first run's first step, not from where this one begins
        going = wait(page, lambda panel: panel["state"] == "running" and panel["run"] != stopped["run"] and panel["loss"].count("L") > stopped["step"])
        assert going["step"] < steps
        page.probe("look", ["KindredTrain"], 1.2)
        page.page.wait_for_timeout(400)
        page.screenshot(f"panel-light-{page.renderer}")
        assert page.probe("contrast", ".kindred-panel") > 4.5
    finally:
        page.theme("dark")
    done = ended(page)
    assert done["step"] == steps and done["loss"].count("L") == steps - 1
    assert page.probe("contrast", ".kindred-panel") > 4.5


def ended(page, number: int = 0) -> dict:
    """A panel whose run has ended and is kept in the workflow. What it draws follows what it knows after a quarter of a second."""
    wait(page, lambda panel: panel["state"] == "done" and (panel["saved"] or {}).get("id") == panel["run"], number=number)
    page.page.wait_for_timeout(1000)
    return page.probe("panels")[number]


def queue(page) -> None:
    page.page.evaluate("() => app.queuePrompt(0)")


def wait(page, condition, seconds: float = 240, number: int = 0) -> dict:
    """A panel (of the trainers in the order of their ids), as soon as it meets the condition."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        panels = page.probe("panels")
        if len(panels) > number and condition(panels[number]):
            return panels[number]
        page.page.wait_for_timeout(150)
    raise AssertionError(f"the panel never came there: {panels}")
