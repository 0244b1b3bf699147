"""The time line of measured steps on a real run: drawn, walked by keyboard, a step seen large and handed to Save Concept, kept in the workflow."""

import json
import time
import uuid

import pytest
from kindred_testing import ROOT
from kindred_testing.browser import missing
from kindred_testing.server import TestServer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]

VALUES = {
    "CheckpointLoaderSimple": {"ckpt_name": TestServer.CHECKPOINT},
    "KindredPhotos": {"folder": "browser"},
    "KindredSave": {"name": "browser", "overwrite": True},
    "KindredTrain": {"steps": 6, "resolution": "64", "learning_rate": "0.001", "preview_every": 2},
}

LINE = """() => {
    const { element, run } = app.graph._nodes.find((node) => node.kindredPanel).kindredPanel;
    const active = document.activeElement, detail = element.querySelector(".kindred-detail");
    return {
        state: run?.state, best: run?.best, kept: run?.kept, saved: app.graph._nodes.find((node) => node.kindredPanel).properties.kindred_run ?? null,
        stops: [...element.querySelectorAll(".stop")].map((stop) => Number(stop.dataset.step)),
        heldout: element.querySelector(".kindred-timeline .field .heldout .line")?.getAttribute("d") ?? "",
        star: element.querySelectorAll(".kindred-timeline .star").length, said: active?.getAttribute?.("aria-label"), focused: Number(active?.dataset?.step),
        detail: detail.hidden ? null : detail.innerText, pictures: [...detail.querySelectorAll("img")].map((picture) => picture.naturalWidth),
        best_frame: element.querySelector(".frame.best .sign")?.textContent, which: app.graph._nodes.find((node) => node.type === "KindredSave").widgets.find((one) => one.name === "which").value,
    };
}"""


def test_a_step_is_seen_and_used(page, tmp_path):
    workflow = json.loads((ROOT / "workflows" / "train_a_concept.json").read_text("utf-8"))
    workflow["id"] = str(uuid.uuid4())
    file = tmp_path / f"best-{workflow['id'][:8]}.json"
    file.write_text(json.dumps(workflow), "utf-8")
    page.drop(file)
    seed = uuid.uuid4().int % 2**31  # the host would answer an equal training from its cache
    page.probe("set", {**VALUES, "KindredTrain": {**VALUES["KindredTrain"], "seed": seed}})
    page.page.evaluate("() => app.queuePrompt(0)")
    page.probe("look", ["KindredTrain"], 1.4)

    def line():
        return page.page.evaluate(LINE)

    deadline = time.monotonic() + 240
    while (now := line())["state"] != "done" or not now["saved"]:
        assert time.monotonic() < deadline and now["state"] != "failed", now
        page.page.wait_for_timeout(200)
    page.page.wait_for_timeout(1000)
    now = line()
    assert now["stops"] == [2, 4, 6] == now["kept"] and now["heldout"].count("L") == 2 and now["star"] == 1 and "★" in now["best_frame"]
    assert page.probe("contrast", ".kindred-timeline .legend") > 4.5

    page.page.evaluate("() => document.querySelector('.stop[tabindex=\"0\"]').focus()")
    page.page.keyboard.press("Home")
    page.page.keyboard.press("ArrowRight")
    now = line()
    assert now["focused"] == 4 and "step 4" in now["said"] and "held-out loss" in now["said"]
    page.page.keyboard.press("Enter")
    page.page.wait_for_timeout(1000)
    now = line()
    assert "step 4" in now["detail"] and "held-out loss" in now["detail"] and now["pictures"] == [64]
    for part in (".kindred-detail .scores", ".kindred-detail button"):
        assert page.probe("contrast", part) > 4.5
    page.screenshot(f"best-step-{page.renderer}")
    page.page.keyboard.press("ArrowLeft")
    assert "step 2" in line()["detail"]
    page.page.evaluate("() => document.querySelector('.kindred-detail .use').click()")
    now = line()
    assert now["which"] == "2" and "will save step 2" in now["detail"]
    page.page.keyboard.press("Escape")
    now = line()
    assert now["detail"] is None and now["focused"] == 2, "the focus is back on the time line"

    trip = page.probe("roundTrip")
    assert trip["before"] == trip["after"]
    page.page.wait_for_timeout(1500)
    assert line()["stops"] == [2, 4, 6] and line()["which"] == "2"
