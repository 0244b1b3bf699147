"""Where photos come from, in the real server: Prior Images, and core's own dataset nodes into Concept."""

import shutil

import numpy as np
import pytest
from kindred_testing.server import Interrupted, PromptError, TestServer
from PIL import Image

CHECKPOINT = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": TestServer.CHECKPOINT}}


def prior_prompt(**changes) -> dict:
    inputs = {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "class_prompt": "a photo of a dog"}
    settings = {"count": 3, "steps": 2, "cfg": 6.0, "seed": 0, "width": 64, "height": 64, "batch_size": 1, **changes}
    return {
        "1": CHECKPOINT,
        "2": {"class_type": "KindredPriorImages", "inputs": {**inputs, **settings}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "prior"}},
    }


def files(server) -> dict:
    return {path: path.stat().st_mtime_ns for path in sorted((server.base / "output/kindred/prior").rglob("*")) if path.is_file()}


def test_prior_images_are_drawn_once_and_kept(server):
    first = server.run(prior_prompt())
    drawn = files(server)
    assert len(first.images["3"]) == 3 and len(drawn) == 3
    assert all(path.suffix == ".png" and path.parent.parent.name == "prior" for path in drawn)
    server.forget()
    second = server.run(prior_prompt())
    assert "2" in second.executed and files(server) == drawn
    assert first.images["3"] == second.images["3"]
    server.run(prior_prompt(seed=1))
    assert len(files(server)) == 6 and drawn.items() <= files(server).items()


def test_an_interrupt_keeps_what_is_drawn_and_the_next_run_goes_on(server):
    before = files(server)

    def interrupt(kind, data):
        if kind == "progress" and data["node"] == "2" and data["value"] >= 5:  # in the third picture
            server.interrupt()

    with pytest.raises(Interrupted):
        server.run(prior_prompt(seed=7, count=200), interrupt)
    kept = {path: time for path, time in files(server).items() if path not in before}
    assert 2 <= len(kept) < 200
    folder = next(iter(kept)).parent
    server.run(prior_prompt(seed=7, count=len(kept) + 1))
    grown = {path: time for path, time in files(server).items() if path.parent == folder}
    assert kept.items() <= grown.items() and len(grown) == len(kept) + 1
    content = [path.read_bytes() for path in grown]
    shutil.rmtree(folder)
    server.forget()
    server.run(prior_prompt(seed=7, count=len(kept) + 1))
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == content


def test_a_prior_that_cannot_be_drawn_reaches_the_artist_in_a_sentence(server):
    with pytest.raises(PromptError, match="class_prompt is empty"):
        server.run(prior_prompt(class_prompt=" "))


@pytest.fixture(scope="module")
def mixed_photos(server):
    """Photos of three shapes with captions, as people collect them."""
    folder = server.base / "input" / "mixed"
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for name, (height, width), caption in (("a", (96, 128), "asleep"), ("b", (128, 80), ""), ("c", (72, 72), "a <v1> dog\nawake")):
        Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption, "utf-8")
    return "mixed"


def test_photos_that_are_left_out_are_named_in_the_servers_log(server):
    """Case 40."""
    folder = server.base / "input" / server.noise_photos("partly")
    (folder / "IMG_7.heic").write_bytes(b"x")
    Image.new("L", (80, 70), 255).save(folder / "0-masklabel.png")
    prompt = {
        "1": {"class_type": "KindredPhotos", "inputs": {"folder": "partly"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "partly"}},
    }
    assert len(server.run(prompt).images["2"]) == 2
    log = server.log.read_text("utf-8")
    assert "IMG_7.heic" in log and "convert it to JPEG" in log and "Used as masks: 0-masklabel.png" in log


def train_on(concept: dict, nodes: dict) -> dict:
    settings = {"method": "kv + token", "spl_weight": 0.0, "prior_weight": 1.0, "steps": 1, "batch_size": 3, "learning_rate": 1e-3, "resolution": 64, "seed": 5}
    return {
        "1": CHECKPOINT,
        **nodes,
        "8": {"class_type": "KindredConcept", "inputs": {"token": "<v1>", "class_word": "dog", **concept}},
        "9": {"class_type": "KindredTrain", "inputs": {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "concepts.concept_0": ["8", 0], **settings}},
        "10": {"class_type": "KindredSave", "inputs": {"lora": ["9", 2], "tokens": ["9", 3], "name": "from-lists", "overwrite": True}},
    }


def test_core_dataset_nodes_connect_to_a_concept(server, mixed_photos):
    """Images of mixed sizes and texts as lists, through core's own nodes for them, with drawn prior images beside; trained on for a step."""
    nodes = {
        "2": {"class_type": "LoadImageTextDataSetFromFolder", "inputs": {"folder": mixed_photos}},
        "3": {"class_type": "ResizeImagesByShorterEdge", "inputs": {"images": ["2", 0], "shorter_edge": 64}},
        "4": {"class_type": "ShuffleImageTextDataset", "inputs": {"images": ["3", 0], "texts": ["2", 1], "seed": 1}},
        "5": prior_prompt(count=2)["2"],
    }
    concept = {"images": ["4", 0], "captions": ["4", 1], "prior_images": ["5", 0]}
    assert {"2", "3", "4", "5", "9"} <= set(server.run(train_on(concept, nodes)).executed)
    nodes = {"2": {"class_type": "LoadImageDataSetFromFolder", "inputs": {"folder": mixed_photos}}}
    assert "9" in server.run(train_on({"images": ["2", 0]}, nodes)).executed


def test_linked_captions_train_the_very_files_of_typed_ones(server, mixed_photos):
    """Through a node of core that hands each text on inside a list of one."""
    nodes = {
        "2": {"class_type": "KindredPhotos", "inputs": {"folder": mixed_photos}},
        "3": {"class_type": "AddTextSuffix", "inputs": {"texts": ["2", 2], "suffix": ", outside"}},
    }
    written = []
    for captions in (["3", 0], "asleep, outside\n, outside\na <v1> dog awake, outside", ["2", 2]):
        server.run(train_on({"images": ["2", 0], "captions": captions}, nodes))
        written.append(
            [(server.base / "models" / place).read_bytes() for place in ("loras/kindred/from-lists.safetensors", "embeddings/from-lists.safetensors")]
        )
    assert written[0] == written[1] != written[2]
