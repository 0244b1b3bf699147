"""Case 62. What a file says about its last run is checked where it is read: no numbers freeze the page, no clock hides a later run."""

import json
import time
import uuid

import pytest
from kindred_testing import MUTATIONS, ROOT
from kindred_testing.browser import missing
from kindred_testing.server import TestServer

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]

MARKUP = '<img src=x onerror="window.pwned=1">'
HOSTILE = {
    "id": MARKUP,
    "started": 1.0,
    "state": MARKUP,
    "note": MARKUP,
    "step": 3,
    "steps": 10,
    "seconds": 5,
    "curves": {"from": 1, "every": 1, "loss": [0.1, "INFINITY"], "spl": [0.1, 0.1], "learning_rate": 1e-4, "drift": {}},
    "previews": [{"step": MARKUP, "image": {"filename": MARKUP, "subfolder": "../../x", "type": "output"}}],
}
GOOD = {
    "id": "from-a-file",
    "started": 4e9,  # in the year 2096
    "state": "done",
    "note": "",
    "step": 20,
    "steps": 20,
    "seconds": 12,
    "curves": {
        "from": 1,
        "every": 1,
        "loss": [0.2 / step for step in range(1, 21)],
        "spl": [0.05] * 20,
        "learning_rate": 1e-3,
        "drift": {"<v1>": [0.1, None] * 10},
    },
    "previews": [],
}


@pytest.fixture
def drop(page, tmp_path):
    """A function that drops the training workflow with a saved run; the file."""

    def drop(run: dict, file=None):
        workflow = json.loads((ROOT / "workflows" / "train_a_concept.json").read_text("utf-8"))
        workflow["id"] = str(uuid.uuid4())
        del workflow["extra"]["kindred_template"]  # what an artist saved is no template any more
        (train,) = (node for node in workflow["nodes"] if node["type"] == "KindredTrain")
        train["properties"]["kindred_run"] = run
        file = file or tmp_path / f"saved-{workflow['id'][:8]}.json"
        if not file.exists():
            file.write_text(json.dumps(workflow).replace('"INFINITY"', "1e999"), "utf-8")
        page.drop(file)
        page.page.wait_for_timeout(1000)  # the panel draws after a quarter of a second
        page.page.wait_for_function("() => document.body", timeout=20_000)  # a frozen page never answers
        return file

    return drop


def panel(page) -> dict:
    return page.probe("panels")[0]


def shot(page, name: str) -> None:
    page.probe("look", ["KindredTrain"], 1.2)
    page.page.wait_for_timeout(400)
    page.screenshot(f"{name}-{page.renderer}")


def test_a_saved_curve_with_an_infinity_is_drawn_without_it(page, drop):
    page.page.set_default_timeout(30_000)
    drop(HOSTILE)
    shown = panel(page)
    assert shown["state"] == "done" and shown["step"] == 3 and shown["loss"].startswith("M") and "L" not in shown["loss"], "one number is left"
    assert shown["previews"] == [] and MARKUP in shown["text"], "markup is text"
    assert page.page.evaluate("() => window.pwned") is None
    trip = page.probe("roundTrip")
    assert trip["before"] == trip["after"]
    shot(page, "saved-hostile")
    page.page.set_default_timeout(180_000)


def test_advice_is_shown_whole(page, drop):
    """Out of memory, with each way out: it was cut off after two lines."""
    advice = (
        "Out of memory: a training step needs about 20.1 GB on top of the weights. Try these in order: "
        + "turn on gradient_checkpointing, set batch_size to 1; " * 6
    )
    drop({**GOOD, "state": "failed", "note": advice + "(/a/path/comes/last)"})
    cut, inside = page.page.evaluate(
        """() => {
            const note = document.querySelector(".kindred-panel .kindred-note"), panel = note.closest(".kindred-panel");
            return [note.scrollHeight - note.clientHeight, panel.clientHeight - note.offsetTop - note.offsetHeight];
        }"""
    )
    assert cut <= 1 and inside >= 0, (cut, inside)
    assert "(/a/path/comes/last)" in panel(page)["text"]
    shot(page, "saved-advice")


@pytest.mark.parametrize("page", ["canvas"], indirect=True)
def test_mutations_of_a_saved_run_are_read_and_drawn(page, drop):
    """In the panel's own modules, each drawn in full: no exception, none over a second, and only numbers in the paths."""
    found = page.page.evaluate(
        """async ([good, rounds]) => {
            const base = (await (await fetch("/extensions")).json()).find((path) => path.endsWith("/panel/panel.js")).replace("panel/panel.js", "");
            const [{ readSaved }, { Chart, legend, newest }, { Drift }, { Figures }, { Filmstrip }, { spark }] = await Promise.all(
                ["run", "chart", "drift", "figures", "filmstrip", "spark"].map((name) => import(`${base}panel/${name}.js`)));
            const parts = [new Chart(() => {}), new Drift(), new Figures(), new Filmstrip(() => {})];
            const [chart] = parts;
            chart.element.style.cssText = "width: 300px; height: 120px; position: fixed; left: 0; top: 0";
            document.body.append(chart.element);
            let seed = 62;
            const random = () => ((seed = (seed * 1103515245 + 12345) % 2147483648) / 2147483648), pick = (list) => list[Math.floor(random() * list.length)];
            const junk = [null, undefined, true, 0, -1, -0, 0.5, 1e-300, 5e-324, 1e30, 1e300, 1.7e308, -1e308, Infinity, -Infinity, NaN, 2 ** 53, "", "NaN", "1", [], [[]], {},
                { length: 1e9 }, [null], Array(5000).fill(1), Array(300).fill(Infinity), { from: -5 }, { "": [1] }, "__proto__", () => 1];
            const mutate = (value, depth = 0) => {
                if (value === null || typeof value !== "object" || !Object.keys(value).length || random() < 0.1 * depth) return pick(junk);
                const copied = Array.isArray(value) ? [...value] : { ...value }, key = pick(Object.keys(copied));
                if (random() < 0.1) delete copied[key];
                else copied[key] = mutate(copied[key], depth + 1);
                return copied;
            };
            const failures = [];
            let slowest = 0, drawn = 0;
            for (let round = 0; round < rounds; round++) {
                let given = good;
                for (let time = 0; time < 1 + random() * 4; time++) given = mutate(given);
                const before = performance.now();
                try {
                    const run = readSaved(given);
                    if (run) {
                        for (const part of parts) part.draw(run);
                        for (const step of [pick(junk), 21, 300, 1e9]) run.curves.add(step, { loss: pick(junk), spl: 0.1, learning_rate: pick(junk), drift: { x: pick(junk) } });
                        chart.draw(run);
                        const rates = run.curves.columns.learning_rate, small = spark(run.curves, rates, run.steps, Math.max(...rates), "rate");
                        const shown = [chart.element, parts[1].element, parts[2].element, small].map((element) => element.outerHTML).join() + JSON.stringify(legend(newest(run.curves)));
                        if (run.curves.length > 256 || /NaN|Infinity|undefined/.test(shown)) throw new Error(`not a number is drawn: ${shown.match(/.{60}(NaN|Infinity|undefined).{20}/)?.[0]}`);
                        drawn++;
                    }
                } catch (error) {
                    failures.push(`${error} of ${JSON.stringify(given)}`.slice(0, 600));
                }
                slowest = Math.max(slowest, performance.now() - before);
            }
            chart.element.remove();
            return { failures: failures.slice(0, 3), count: failures.length, slowest, drawn };
        }""",
        [{**GOOD, "previews": [{"step": 5, "image": {"filename": "step-5.png", "subfolder": "x", "type": "nowhere"}}]}, MUTATIONS],
    )
    assert found["failures"] == [], found
    assert found["slowest"] < 1000 and found["drawn"] > 0.4 * MUTATIONS, found


@pytest.mark.parametrize("page", ["canvas"], indirect=True)
def test_a_saved_run_of_a_wrong_clock_hides_no_later_run(page, drop):
    file = drop(GOOD)
    assert panel(page)["run"] == "from-a-file" and panel(page)["loss"].count("L") == 19
    shot(page, "saved-by-a-wrong-clock")
    train = {"steps": 3, "resolution": "64", "batch_size": 1, "learning_rate": "1e-3", "run_name": file.stem}
    page.probe(
        "set",
        {
            "CheckpointLoaderSimple": {"ckpt_name": TestServer.CHECKPOINT},
            "KindredPhotos": {"folder": "browser"},
            "KindredSave": {"name": "browser", "overwrite": True},
            "KindredTrain": train,
        },
    )
    page.page.evaluate("() => app.queuePrompt(0)")
    deadline = time.monotonic() + 240
    while not ((now := panel(page))["state"] == "done" and now["run"] != "from-a-file" and (now["saved"] or {}).get("id") == now["run"]):
        assert time.monotonic() < deadline, now
        page.page.wait_for_timeout(200)
    assert now["step"] == 3 and now["saved"]["order"] == 1
    drop(GOOD, file)  # the file of before, opened again: the server knows of the later run
    page.page.wait_for_timeout(1000)
    assert panel(page)["run"] == now["run"]
