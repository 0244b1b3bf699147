"""Train Concept in the real server: every method, previews and events on the way, stopped and continued."""

import io
import json

import numpy as np
import pytest
import torch
from kindred_testing.server import Interrupted, PromptError, TestServer
from PIL import Image
from safetensors import safe_open

CHECKPOINT = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": TestServer.CHECKPOINT}}


@pytest.fixture(scope="module")
def photos(server):
    return server.noise_photos("noise")


def prompt(photos: str, name: str, method: dict | None = None, **settings) -> dict:
    given = {"spl_weight": 1.0, "prior_weight": 1.0, "steps": 3, "batch_size": 1, "learning_rate": 0.0, "resolution": 64, "seed": 5, **settings}
    method = {"method": "kv + token"} | {key if key == "method" else f"method.{key}": value for key, value in (method or {}).items()}
    return {
        "1": CHECKPOINT,
        "2": {"class_type": "KindredPhotos", "inputs": {"folder": photos}},
        "3": {"class_type": "KindredConcept", "inputs": {"images": ["2", 0], "token": "<v1>", "class_word": "dog"}},
        "4": {
            "class_type": "KindredTrain",
            "inputs": {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "concepts.concept_0": ["3", 0], **given, **method},
        },
        "5": {"class_type": "KindredSave", "inputs": {"lora": ["4", 2], "tokens": ["4", 3], "name": name, "overwrite": True, "dtype": "float32"}},
        "6": {"class_type": "LossGraphNode", "inputs": {"loss": ["4", 4], "filename_prefix": "loss"}},
    }


LORA = {"rank": 2, "targets": "attention"}


@pytest.mark.parametrize(
    "method, kinds",
    [
        ({"method": "lora + token", **LORA, "train_text_encoder": True}, {"diffusion_model", "text_encoders"}),
        ({"method": "lora", "rank": 2, "targets": "attention + feed-forward + convolutions", "adapter": "LoKr"}, {"diffusion_model"}),
        ({"method": "token", "vectors": 2, "direction_only": True}, set()),
    ],
)
def test_each_method_learns_saves_loads_and_draws(server, photos, method, kinds):
    name = "m-" + method["method"].replace(" ", "")
    result = server.run({**prompt(photos, name, method, preservation_weight=0.5), **drawing(["4", 0], ["4", 1], 64)})
    file = server.base / "models" / "loras" / "kindred" / f"{name}.safetensors"
    with safe_open(file, "pt") as saved:
        assert {key.split(".")[0] for key in saved.keys()} == kinds  # noqa: SIM118
        metadata = saved.metadata()
    if kinds:
        assert metadata["kindred.method"] == method["method"] and metadata["ss_network_dim"] == "2" and len(metadata["kindred.base_model_hash"]) == 64
    embedding = server.base / "models" / "embeddings" / f"{name}.safetensors"
    assert embedding.is_file() == ("token" in method["method"])
    loaded = {"1": CHECKPOINT, "2": {"class_type": "KindredLoad", "inputs": {"model": ["1", 0], "clip": ["1", 1], "name": name, "strength": 1.0}}}
    again = server.run({**loaded, **drawing(["2", 0], ["2", 1], 64)})
    base = server.run({"1": CHECKPOINT, **drawing(["1", 0], ["1", 1], 64)})
    first, second, third = (np.asarray(Image.open(io.BytesIO(run.images["25"][0]))) for run in (result, again, base))
    assert np.array_equal(first, second) and not np.array_equal(first, third)


def test_options_and_prompts_of_earlier_versions_train_alike(server, photos):
    """All settings on Train Concept, as earlier versions had them, or on both nodes: the same file, bit for bit. What is unclear is refused."""
    changed = {"vectors": 2, "token_learning_rate": 0.0}, {"batch_size": 2, "precision": "fp32", "weight_decay": 0.1, "augment": False, "resolution": 64}
    old = prompt(photos, "alike-old", changed[0], **changed[1], learning_rate=1e-3)
    new = prompt(photos, "alike-new", learning_rate="1e-3", resolution="64")
    for name in ("prior_weight", "batch_size"):
        del new["4"]["inputs"][name]
    new["7"] = {"class_type": "KindredTrainingOptions", "inputs": {**changed[0], **changed[1], "token_learning_rate": "auto"}}
    del new["7"]["inputs"]["resolution"]
    new["4"]["inputs"]["options"] = ["7", 0]
    written = []
    for graph in (old, new):
        server.run(graph)
        name = graph["5"]["inputs"]["name"]
        for file in (f"models/embeddings/{name}", f"models/loras/kindred/{name}"):
            with safe_open(server.base / f"{file}.safetensors", "pt") as saved:
                written.append({key: saved.get_tensor(key) for key in saved.keys()})  # noqa: SIM118
                metadata = saved.metadata()
        assert (metadata["kindred.learning_rate"], metadata["kindred.token_learning_rate"]) == ("0.001", "auto")
    for one, other in zip(written[:2], written[2:], strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    def refused(match: str, **inputs):
        with pytest.raises(PromptError, match=match):
            server.run({**new, "4": {**new["4"], "inputs": {**new["4"]["inputs"], **inputs}}})

    refused("weight_decay: set on Train Concept and on Training Options", weight_decay=0.2)
    refused("Train Concept has no input 'weight_decy'", weight_decy=0.2)
    refused("learning_rate is 'fast'; expected auto, or a number such as 0.0001", learning_rate="fast")
    refused("resolution is 4; at least 64", resolution="4")


def drawing(model, clip, side):
    sampling = {"seed": 3, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "model": model}
    return {
        "20": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": "a photo of a <v1> dog on the beach"}},
        "21": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": ""}},
        "22": {"class_type": "EmptyLatentImage", "inputs": {"width": side, "height": side, "batch_size": 1}},
        "23": {"class_type": "KSampler", "inputs": {**sampling, "positive": ["20", 0], "negative": ["21", 0], "latent_image": ["22", 0]}},
        "24": {"class_type": "VAEDecode", "inputs": {"samples": ["23", 0], "vae": ["1", 2]}},
        "25": {"class_type": "SaveImage", "inputs": {"images": ["24", 0], "filename_prefix": "method"}},
    }


def test_watched_interrupted_and_continued(server, photos):
    """Previews come as events whose pictures the host serves; an interrupt keeps all, and `continue` ends as the uninterrupted run."""
    settings = {"steps": 6, "learning_rate": 1e-3, "preview_every": 2, "preview_cfg": 4.0, "run_name": "watched", "save_every": 2}
    server.run(prompt(photos, "whole", **{**settings, "run_name": "whole", "preview_every": 0}))
    events = []

    def stop(kind, data):
        events.append((kind, data))
        if kind == "kindred.training" and data["step"] == 3:
            server.interrupt()

    with pytest.raises(Interrupted):
        server.run(prompt(photos, "watched", **settings), stop)
    previews = [data for kind, data in events if kind == "kindred.preview"]
    assert previews and previews[0]["node"] == "4" and previews[0]["step"] == 2
    image = previews[0]["image"]
    assert image["type"] == "output" and image["subfolder"] == "kindred/runs/watched/previews"
    assert Image.open(server.base / "output" / image["subfolder"] / image["filename"]).size == (64, 64)
    done = max(data["step"] for kind, data in events if kind == "kindred.training")
    run = server.base / "output" / "kindred" / "runs" / "watched"
    assert sorted(int(path.stem[-8:]) for path in run.glob("state-*"))[-1] in (done, done + 1)

    server.run(prompt(photos, "watched", **settings, resume="continue"))
    files = [
        [server.base / "models" / kind / f"{folder}{name}.safetensors" for kind, folder in (("loras", "kindred/"), ("embeddings", ""))]
        for name in ("whole", "watched")
    ]
    for whole, continued in zip(*files, strict=True):
        with safe_open(whole, "pt") as first, safe_open(continued, "pt") as second:
            assert first.keys() == second.keys()
            assert all(torch.equal(first.get_tensor(key), second.get_tensor(key)) for key in first.keys())  # noqa: SIM118
    with pytest.raises(PromptError, match="batch_size was 1, is 2"):
        server.run(prompt(photos, "watched", **{**settings, "batch_size": 2}, resume="continue"))


def test_the_best_step_is_told_and_saved(server, photos):
    """Marks come as events and stay for a later page; Save Concept takes the files of the step that the rule chose, and says which."""
    events = []
    settings = {"steps": 4, "learning_rate": 1e-3, "run_name": "best", "heldout_every": 1, "preview_every": 0}
    graph = prompt(photos, "best", **settings)
    graph["5"]["inputs"]["which"] = "best"
    result = server.run(graph, lambda kind, data: events.append((kind, data)), workflow={"id": "best"})
    marks = [data for kind, data in events if kind == "kindred.mark"]
    assert [mark["step"] for mark in marks] == [1, 2, 3, 4] and all(mark["heldout"] > 0 and 0 < mark["watching"] < 1 for mark in marks)
    best = marks[-1]["best"]
    (run,) = server.get("/kindred/runs", workflow="best")["runs"]
    assert run["best"] == best and [mark["step"] for mark in run["marks"]] == [1, 2, 3, 4]
    assert f"Step {best}, the best of those measured" in result.ui["5"]["text"][0]
    saved = server.base / "models" / "loras" / "kindred" / "best.safetensors"
    kept = server.base / "output" / "kindred" / "runs" / "best" / "steps" / "loras" / f"best-step{best}.safetensors"
    with safe_open(saved, "pt") as first, safe_open(kept, "pt") as second:
        assert first.metadata()["kindred.step"] == str(best)
        assert all(torch.equal(first.get_tensor(key), second.get_tensor(key)) for key in first.keys())  # noqa: SIM118
    del graph["6"]  # the host runs a graph without the outputs that it refuses, as long as another is left
    graph["5"]["inputs"]["which"] = "first"
    with pytest.raises(PromptError, match="expected 'last', 'best' or the number of a step"):
        server.run(graph)
    graph["5"]["inputs"]["which"] = "7"
    with pytest.raises(PromptError, match=r"Step 7 was not kept\. The kept steps are 1, 2, 3, 4"):
        server.run(graph)


def test_skipped_steps_are_told_and_every_event_is_json(server, photos):
    """Case 43. fp16 with a loss that overflows at first: the skipped steps' norm is null in the events, and the node says how many there were."""
    events = []
    server.run(
        prompt(photos, "half", run_name="half", precision="fp16", spl_weight=1000.0, steps=16),
        lambda kind, data: events.append((kind, data)),
        workflow={"id": "half"},
    )
    json.dumps(events, allow_nan=False)
    json.dumps(server.get("/kindred/runs", workflow="half"), allow_nan=False)
    steps = [data for kind, data in events if kind == "kindred.training"]
    assert any(step["gradient_norm"] is None for step in steps) and any(step["gradient_norm"] for step in steps)
    (run,) = server.get("/kindred/runs", workflow="half")["runs"]
    assert run["state"] == "done" and "of 16 steps were skipped" in run["note"]
    with pytest.raises(PromptError, match=r"overflows in precision 'fp16': the last 2 steps were skipped"):
        server.run(prompt(photos, "half", run_name="none", precision="fp16", spl_weight=1000.0, steps=2))


def test_a_trained_result_outlives_a_later_node_that_fails(server, photos):
    """A name that no file can have, through a link, where nothing checks it before: the training is done and not lost, the next queue finds it without a step."""
    graph = prompt(photos, "", run_name="lost")
    graph["7"] = {"class_type": "PrimitiveString", "inputs": {"value": "CON"}}
    graph["5"]["inputs"]["name"] = ["7", 0]
    with pytest.raises(PromptError, match="reserved by Windows"):
        server.run(graph)
    events = []
    server.run(prompt(photos, "found", run_name="lost", resume="continue"), lambda kind, data: events.append(kind))
    assert "kindred.training" not in events
    assert (server.base / "models" / "loras" / "kindred" / "found.safetensors").is_file()
