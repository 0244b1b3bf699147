"""Files of versions in which Train Concept had all settings: opened in the real page, they run with the settings that they were saved with."""

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from kindred_testing import ROOT
from kindred_testing.browser import missing
from kindred_testing.server import TestServer
from safetensors import safe_open

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]

OLD = {  # the widgets of Train Concept 0.1 with kv + token, in its order, at other values than the defaults
    **{"method": "kv + token", "method.token_learning_rate": 0, "method.vectors": 2, "method.direction_only": True, "spl_weight": 0.5, "prior_weight": 0.25},
    **{"steps": 2, "batch_size": 1, "learning_rate": 0.00003, "resolution": 64, "seed": 11, "preview_every": 0, "resume": "new run", "augment": False},
    **{"flip": False, "weight_decay": 0.02, "clip_norm": 0.5, "precision": "fp32", "accumulation": 2, "gradient_checkpointing": True, "optimizer": "Adafactor"},
    **{"schedule": "cosine", "warmup_steps": 1, "ema_decay": 0.5, "preservation_weight": 0.1, "loss": "huber", "huber_delta": 0.2, "min_snr_gamma": 5},
    **{
        "noise": "uniform",
        "crop": "buckets",
        "caption_dropout": 0.1,
        "preview_prompt": "a {class}",
        "preview_omega": 0.5,
        "preview_cfg": 6,
        "run_name": "aged",
    },
    **{"save_every": 7, "rows": "all"},
}
ADAPTER = {  # with an adapter, which had its inputs on Train Concept, too
    **{"method": "lora", "method.rank": 4, "method.targets": "text", "method.alpha": 2, "method.adapter": "DoRA", "method.train_text_encoder": True},
    **{"method.text_learning_rate": 0.00002},
    **{name: value for name, value in OLD.items() if not name.startswith("method")},
}
PLAIN = {  # the same at the defaults
    **{"method": "kv + token", "method.token_learning_rate": 0, "method.vectors": 1, "method.direction_only": False, "spl_weight": 1, "prior_weight": 1},
    **{"steps": 500, "batch_size": 2, "learning_rate": 0, "resolution": 512, "seed": 0, "preview_every": 0, "resume": "new run", "augment": True, "flip": True},
    **{"weight_decay": 0.01, "clip_norm": 1, "precision": "auto", "accumulation": 1, "gradient_checkpointing": False, "optimizer": "AdamW"},
    **{"schedule": "constant", "warmup_steps": 0, "ema_decay": 0, "preservation_weight": 0, "loss": "l2", "huber_delta": 0.1, "min_snr_gamma": 0},
    **{"noise": "auto", "crop": "square", "caption_dropout": 0, "preview_prompt": "a photo of a {token} {class} on the beach", "preview_omega": 0.6},
    **{"preview_cfg": 7.5, "run_name": "", "save_every": 100},  # and without rows, which came later
}
TYPES = {bool: "BOOLEAN", int: "INT", float: "FLOAT", str: "STRING"}


def template() -> dict:
    return json.loads((ROOT / "workflows" / "train_a_concept.json").read_text("utf-8"))


def aged(node: dict, values: dict, named: bool = True) -> dict:
    """The Train Concept `node` as the old version saved it; `named` False: as a front end that did not list the widgets in `inputs`."""
    sockets = [slot for slot in node["inputs"] if not slot.get("widget") and slot["name"] != "options"]
    widgets = [{"name": name, "type": TYPES[type(value)], "widget": {"name": name}, "link": None} for name, value in values.items()]
    saved = [entry for name, value in values.items() for entry in ([value, "increment"] if name == "seed" else [value])]
    return {**node, "inputs": sockets + widgets * named, "widgets_values": saved, "size": [400, 1300]}


def train_of(graph: dict) -> dict:
    return next(node for node in graph["nodes"] if node["type"] == "KindredTrain")


def settings(page) -> dict:
    """What the page would queue: the settings of both nodes by their names, as numbers."""
    prompt = page.page.evaluate("async () => (await app.graphToPrompt()).output")
    (train,) = (node["inputs"] for node in prompt.values() if node["class_type"] == "KindredTrain")
    options = prompt[train["options"][0]]["inputs"] if "options" in train else {}
    assert not train.keys() & options.keys()
    given = {name.removeprefix("method."): number(value) for name, value in {**train, **options}.items()}
    return {name: value for name, value in given.items() if f"method.{name}" in {**OLD, **ADAPTER} or name in OLD}


def number(value):
    try:
        return 0 if value == "auto" else float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def wanted(values: dict) -> dict:
    return {name.removeprefix("method."): number(value) for name, value in values.items()}


def opened(page, workflow: dict, tmp_path) -> list[dict]:
    file = tmp_path / f"old-{abs(hash(json.dumps(workflow))) % 10**8}.json"
    file.write_text(json.dumps(workflow), "utf-8")
    page.drop(file)
    return page.probe("describe")


@pytest.mark.parametrize("named", [True, False], ids=["widgets named", "by position"])
def test_changed_settings_are_on_a_training_options_node(page, server, tmp_path, named):
    workflow = template()
    train = train_of(workflow)
    train.update(aged(train, OLD, named))
    nodes = opened(page, workflow, tmp_path)
    assert [node["type"] for node in nodes].count("KindredTrainingOptions") == 1
    assert wanted(OLD).items() <= settings(page).items()
    (shown,) = (node["values"] for node in nodes if node["type"] == "KindredTrain")
    assert shown["learning_rate"] == "0.00003" and shown["resolution"] == "64" and "increment" in shown.values()
    (shown,) = (node["values"] for node in nodes if node["type"] == "KindredTrainingOptions")
    assert shown["token_learning_rate"] == "auto", "0 is a word now"
    trip = page.probe("roundTrip")
    assert trip["before"] == trip["after"] and wanted(OLD).items() <= settings(page).items(), "once, not again"
    page.probe("look", ["KindredTrain", "KindredTrainingOptions"], 0.7)
    page.page.wait_for_timeout(400)
    page.screenshot(f"old-file-{page.renderer}")
    if named and page.renderer == "vue":
        run(page, server)


def run(page, server) -> None:
    """The file's settings are those that the real server trains with: what it writes into the LoRA."""
    page.probe(
        "set",
        {
            "CheckpointLoaderSimple": {"ckpt_name": TestServer.CHECKPOINT},
            "KindredPhotos": {"folder": "browser"},
            "KindredSave": {"name": "aged", "overwrite": True},
        },
    )
    prompt = page.page.evaluate("async () => (await app.graphToPrompt()).output")
    with ThreadPoolExecutor(1) as apart:  # the driver has an event loop of its own, and so has Playwright here
        apart.submit(server.run, prompt).result()
    with safe_open(server.base / "models" / "loras" / "kindred" / "aged.safetensors", "pt") as file:
        written = {name.removeprefix("kindred."): value for name, value in file.metadata().items()}
    texts = {name: value if isinstance(value, str) else str(value) for name, value in wanted(OLD).items() if name in written}
    assert len(texts) > 25
    assert {name: number(written[name]) for name in texts} == {name: number(text) for name, text in texts.items()}


def test_a_file_at_the_defaults_needs_no_second_node(page, tmp_path):
    workflow = template()
    train = train_of(workflow)
    train.update(aged(train, PLAIN))
    nodes = opened(page, workflow, tmp_path)
    assert "KindredTrainingOptions" not in {node["type"] for node in nodes}
    (shown,) = (node["values"] for node in nodes if node["type"] == "KindredTrain")
    assert (shown["learning_rate"], shown["resolution"]) == ("auto", "512")


def test_links_into_moved_inputs_move_with_them(page, tmp_path):
    workflow = template()
    train = train_of(workflow)
    train.update(aged(train, PLAIN))
    link, giver = workflow["last_link_id"] + 1, workflow["last_node_id"] + 1
    output = {"name": "FLOAT", "type": "FLOAT", "links": [link, link + 1]}
    workflow["nodes"].append(
        {"id": giver, "type": "PrimitiveFloat", "pos": [0, 0], "size": [200, 60], "inputs": [], "outputs": [output], "widgets_values": [0.125]}
    )
    for number_, name in ((link, "weight_decay"), (link + 1, "learning_rate")):
        slot = next(index for index, one in enumerate(train["inputs"]) if one["name"] == name)
        train["inputs"][slot]["link"] = number_
        workflow["links"].append([number_, giver, 0, train["id"], slot, "FLOAT"])
    workflow.update(last_link_id=link + 1, last_node_id=giver)
    nodes = {node["type"]: node for node in opened(page, workflow, tmp_path)}
    assert nodes["KindredTrainingOptions"]["links"].keys() == {"weight_decay"} and "learning_rate" in nodes["KindredTrain"]["links"]
    queued = settings(page)
    assert queued["weight_decay"] == queued["learning_rate"] == [str(giver), 0]


def test_a_trainer_in_a_subgraph_is_brought_up_to_date_there(page, tmp_path):
    page.drop(ROOT / "workflows" / "train_a_concept.json")
    workflow = page.page.evaluate(
        """() => {
            app.graph.convertToSubgraph(new Set(app.graph._nodes.filter((node) => node.type === "KindredTrain")));
            return app.graph.serialize();
        }"""
    )
    (inner,) = workflow["definitions"]["subgraphs"]
    train = train_of(inner)
    train.update(aged(train, ADAPTER))
    opened(page, copy.deepcopy(workflow), tmp_path)
    queued = settings(page)
    assert {name: queued[name] for name in wanted(ADAPTER)} == wanted(ADAPTER)


def test_a_prompt_in_api_form_dropped_on_the_page_keeps_its_settings(page, tmp_path):
    page.drop(ROOT / "workflows" / "train_a_concept.json")
    prompt = page.page.evaluate("async () => (await app.graphToPrompt()).output")
    (train,) = (node["inputs"] for node in prompt.values() if node["class_type"] == "KindredTrain")
    train.update(OLD)
    opened(page, prompt, tmp_path)
    page.page.wait_for_timeout(500)
    assert wanted(OLD).items() <= settings(page).items()
