"""The whole way in the real server: photos, Train Concept, files, a new graph that loads them, guided sampling, pictures."""

import copy
import io
import shutil

import numpy as np
import pytest
import safetensors.torch
from kindred_testing.server import PromptError, TestServer
from PIL import Image

CHECKPOINT = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": TestServer.CHECKPOINT}}


def train_prompt(folder: str, name: str, **changes) -> dict:
    settings = {
        "method": "kv + token",
        "spl_weight": 1.0,
        "prior_weight": 1.0,
        "steps": 3,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "resolution": 64,
        "seed": 5,
        **changes,
    }
    return {
        "1": CHECKPOINT,
        "2": {"class_type": "KindredPhotos", "inputs": {"folder": folder}},
        "3": {"class_type": "KindredConcept", "inputs": {"images": ["2", 0], "masks": ["2", 1], "captions": ["2", 2], "token": "<v1>", "class_word": "dog"}},
        "4": {"class_type": "KindredTrain", "inputs": {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "concepts.concept_0": ["3", 0], **settings}},
        "5": {"class_type": "KindredSave", "inputs": {"lora": ["4", 2], "tokens": ["4", 3], "name": name, "overwrite": True, "dtype": "float32"}},
    }


def draw(model: list, clip: list, text: str, sampler: dict | None = None) -> dict:
    """Nodes 20... that sample with `model` and `clip` and save the picture in node 24."""
    sampler = sampler or {"class_type": "KSampler", "inputs": {}}
    common = {
        "seed": 3,
        "steps": 3,
        "cfg": 6.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "positive": ["20", 0],
        "negative": ["21", 0],
        "latent_image": ["22", 0],
        "denoise": 1.0,
        "model": model,
    }
    return {
        "20": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": text}},
        "21": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": ""}},
        "22": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "23": {"class_type": sampler["class_type"], "inputs": {**common, **sampler["inputs"]}},
        "24": {"class_type": "VAEDecode", "inputs": {"samples": ["23", 0], "vae": ["1", 2]}},
        "25": {"class_type": "SaveImage", "inputs": {"images": ["24", 0], "filename_prefix": "test"}},
    }


def picture(result, node: str = "25") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(result.images[node][0])).convert("RGB"))


@pytest.fixture(scope="module")
def photos(server, dog_photos):
    folder = server.base / "input" / "dog"
    folder.mkdir(exist_ok=True)
    for path in dog_photos:
        shutil.copy(path, folder)
    return "dog"


@pytest.fixture(scope="module")
def trained(server, photos):
    """One training through the server, with what it told on the way."""
    events = []
    result = server.run(train_prompt(photos, "first"), lambda kind, data: events.append((kind, data)))
    return result, events


def test_training_tells_its_steps_and_writes_standard_files(server, trained):
    result, events = trained
    steps = [data for kind, data in events if kind == "kindred.training"]
    assert steps[-1]["step"] == steps[-1]["steps"] == 3 and steps[-1]["node"] == "4"
    assert {"loss", "spl", "drift", "gradient_norm", "seconds_left"} <= set(steps[-1]) and set(steps[-1]["drift"]) == {"<v1>"}
    assert any(kind == "progress" and data["value"] == 3 for kind, data in events)
    assert result.ui["5"]["text"][0].splitlines() == ["Saved as first", "LoRA: kindred/first.safetensors", "<v1> = embedding:first"]
    assert (server.base / "models/loras/kindred/first.safetensors").is_file() and (server.base / "models/embeddings/first.safetensors").is_file()


def load_and_draw(name: str, text: str) -> dict:
    return {
        "1": CHECKPOINT,
        "2": {"class_type": "KindredLoad", "inputs": {"model": ["1", 0], "clip": ["1", 1], "name": name, "strength": 1.0}},
        **draw(["2", 0], ["2", 1], text),
    }


def on_all_rows(server, name: str) -> str:
    """A copy of the saved concept that acts on all rows, as the papers' and older versions' do."""
    folder = server.base / "models/loras/kindred"
    with safetensors.safe_open(folder / f"{name}.safetensors", "pt") as file:
        state, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118
    assert metadata["kindred.rows"] == "token and end"
    safetensors.torch.save_file(state, folder / f"{name}_everywhere.safetensors", {**metadata, "kindred.rows": "all"})
    return f"{name}_everywhere"


def test_a_prompt_without_the_token_draws_the_base_models_picture(server, trained):
    """Bit for bit; the token's does not, and a file that acts on all rows changes both."""
    plain = {"1": CHECKPOINT, **draw(["1", 0], ["1", 1], "a photo of a dog on the beach")}
    texts = "a photo of a dog on the beach", "a photo of a <v1> dog on the beach"
    base, *tuned = (picture(server.run(prompt)) for prompt in (plain, *(load_and_draw("first", text) for text in texts)))
    assert np.array_equal(tuned[0], base)
    assert not np.array_equal(tuned[1], base)
    assert not np.array_equal(picture(server.run(load_and_draw(on_all_rows(server, "first"), texts[0]))), base)
    named = picture(server.run(load_and_draw("first", "a photo of a embedding:first dog on the beach")))
    assert np.array_equal(named, tuned[1])  # the token's own file, by its name


def test_stock_loaders_give_the_very_picture_of_a_concept_on_all_rows(server, trained):
    ours = load_and_draw(on_all_rows(server, "first"), "a photo of a <v1> dog on the beach")
    stock = {
        "1": CHECKPOINT,
        "2": {
            "class_type": "LoraLoader",
            "inputs": {"model": ["1", 0], "clip": ["1", 1], "lora_name": "kindred/first.safetensors", "strength_model": 1.0, "strength_clip": 1.0},
        },
        **draw(["2", 0], ["2", 1], "a photo of a embedding:first dog on the beach"),
    }
    base = {"1": CHECKPOINT, **draw(["1", 0], ["1", 1], "a photo of a dog on the beach")}
    a, b, c = (picture(server.run(prompt)) for prompt in (ours, stock, base))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_the_trained_outputs_draw_what_the_saved_files_draw(server, photos, trained):
    prompt = train_prompt(photos, "first")
    del prompt["5"]
    direct = server.run({**prompt, **draw(["4", 0], ["4", 1], "a photo of a <v1> dog")})
    loaded = server.run(
        {
            "1": CHECKPOINT,
            "2": {"class_type": "KindredLoad", "inputs": {"model": ["1", 0], "clip": ["1", 1], "name": "first", "strength": 1.0}},
            **draw(["2", 0], ["2", 1], "a photo of a <v1> dog"),
        }
    )
    assert np.array_equal(picture(direct), picture(loaded))


@pytest.mark.slow
def test_training_through_the_server_learns_the_dog_and_leaves_the_base_as_it_was(server, photos, dog_photos):
    """Held-out loss of the saved files under the same checkpoint; and the base model's picture, before and after, in the same process."""
    import torch
    from kindred_testing import pack
    from kindred_testing.models import sd15
    from kindred_testing.training import held_out_loss, untrained_token

    plain = {"1": CHECKPOINT, **draw(["1", 0], ["1", 1], "a photo of a dog in the park")}
    before = picture(server.run(plain))
    server.run(train_prompt(photos, "learned", steps=24, seed=7))
    plain["23"]["inputs"]["seed"] = 4  # another picture in between, so that the next one is drawn and not remembered
    assert not np.array_equal(picture(server.run(plain)), before)
    plain["23"]["inputs"]["seed"] = 3
    assert np.array_equal(picture(server.run(plain)), before)

    base = sd15()
    folder = server.base / "models"
    with torch.inference_mode():
        lora, (token,) = pack("formats.concept_file").load(
            folder / "loras/kindred/learned.safetensors", {"clip_l": 768}, lambda name: folder / "embeddings" / name
        )
        tuned, _ = pack("host.lora").apply_lora(base[0], None, lora)
        pictures = [torch.from_numpy(photo.pixels)[None] for photo in pack("training.data.photos").read_photos(dog_photos[0].parent)]
        concept = pack("training.data.concept").make_concept(pictures, "<v1>", "dog")
        assert all(name.endswith(("attn2.to_k.diff", "attn2.to_v.diff")) for name in lora)
        assert held_out_loss(tuned, base[1], base[2], token, concept) < 0.8 * held_out_loss(*base, untrained_token(base[1]), concept)


def test_what_changes_is_made_again_and_nothing_else(server, photos):
    """The executor's cache: a new omega trains nothing; another seed, setting or photo trains again."""

    def prompt(omega=0.6, folder=photos, **changes):
        guided = {"class_type": "KindredKSampler", "inputs": {"base_model": ["1", 0], "omega": omega}}
        nodes = train_prompt(folder, "cached", steps=1, rows="all", **changes)
        del nodes["5"]
        return {**nodes, **draw(["4", 0], ["4", 1], "a photo of a <v1> dog", guided)}

    first = server.run(prompt())
    again = server.run(prompt(omega=0.2))
    assert "4" in first.executed and "4" not in again.executed and "23" in again.executed
    assert not np.array_equal(picture(first), picture(again))
    assert "4" in server.run(prompt(seed=6)).executed
    assert "4" in server.run(prompt(spl_weight=0.5)).executed
    shutil.copytree(server.base / "input" / photos, server.base / "input" / "changing", dirs_exist_ok=True)
    assert "4" in server.run(prompt(folder="changing")).executed
    assert "4" not in server.run(prompt(folder="changing")).executed
    file = sorted((server.base / "input" / "changing").glob("*.jpg"))[0]
    Image.open(file).rotate(180).save(file)
    assert "4" in server.run(prompt(folder="changing")).executed


def test_two_trainers_in_one_graph_do_not_disturb_each_other(server, photos):
    def alone(seed, name):
        server.run(train_prompt(photos, name, seed=seed, steps=2))
        return (server.base / f"models/loras/kindred/{name}.safetensors").read_bytes(), (server.base / f"models/embeddings/{name}.safetensors").read_bytes()

    expected = [alone(11, "alone"), alone(12, "alone")]
    both = train_prompt(photos, "both-a", seed=11, steps=2)
    both["6"] = copy.deepcopy(both["4"])
    both["6"]["inputs"]["seed"] = 12
    both["7"] = {"class_type": "KindredSave", "inputs": {**both["5"]["inputs"], "lora": ["6", 2], "tokens": ["6", 3], "name": "both-b"}}
    server.forget()
    server.run(both)
    import json
    import struct

    def weights(data: bytes) -> bytes:  # the manifest names the files, which differ
        (length,) = struct.unpack("<Q", data[:8])
        json.loads(data[8 : 8 + length])
        return data[8 + length :]

    for name, (lora, token) in zip(("both-a", "both-b"), expected, strict=True):
        assert weights((server.base / f"models/loras/kindred/{name}.safetensors").read_bytes()) == weights(lora)
        assert weights((server.base / f"models/embeddings/{name}.safetensors").read_bytes()) == weights(token)


def test_the_node_shows_the_name_it_saved_under_and_gives_it_on(server, photos):
    """Case 47. A name that is taken gets a number: the first line on the node and the output say which."""
    prompt = train_prompt(photos, "my_dog")
    prompt["5"]["inputs"]["overwrite"] = False
    prompt["6"] = {"class_type": "PreviewAny", "inputs": {"source": ["5", 0]}}
    server.run(prompt)
    server.forget()
    result = server.run(prompt)
    lines = result.ui["5"]["text"][0].splitlines()
    assert lines[:2] == ["Saved as my_dog_2", "The name 'my_dog' was taken: kindred/my_dog.safetensors."]
    assert result.ui["6"]["text"] == ["my_dog_2"]
    assert "my_dog_2" in server.get("/object_info/KindredLoad")["KindredLoad"]["input"]["required"]["name"][1]["options"]


def test_a_name_that_no_file_can_have_is_refused_before_the_training(server, photos):
    events = []
    with pytest.raises(PromptError, match=r"contains '/'"):
        server.run(train_prompt(photos, "a/../../evil", seed=99), lambda kind, data: events.append(kind))
    assert "kindred.training" not in events


def test_an_interrupt_through_the_server_ends_training_and_the_next_prompt_works(server, photos):
    from kindred_testing.server import Interrupted

    def interrupt(kind, data):
        if kind == "kindred.training" and data["step"] >= 1:
            server.interrupt()

    with pytest.raises(Interrupted):
        server.run(train_prompt(photos, "never", steps=200, seed=77), interrupt)
    assert not (server.base / "models/loras/kindred/never.safetensors").exists()
    assert picture(server.run({"1": CHECKPOINT, **draw(["1", 0], ["1", 1], "a photo of a dog, after")})).shape == (64, 64, 3)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"3": {"token": "a b"}}, "token 'a b'"),
        ({"3": {"instance_prompt": "a photo"}}, "does not name the token"),
        ({"4": {"resolution": 100}}, "multiple of 8"),
        ({"5": {"name": "a/../../evil"}}, "contains '/'"),
    ],
)
def test_errors_reach_the_artist_in_a_sentence(server, photos, change, words):
    prompt = train_prompt(photos, "errors", steps=1)
    for node, inputs in change.items():
        prompt[node]["inputs"].update(inputs)
    with pytest.raises(PromptError, match=words):
        server.run(prompt)


def test_a_concept_of_another_architecture_is_refused(server, trained):
    import torch
    from kindred_testing import pack

    safefile = pack("formats.safefile")
    folder = server.base / "models/loras/kindred"
    tensors, metadata = safefile.read(folder / "first.safetensors")
    safefile.write(
        {
            name.replace("input_blocks.1.1", "joint_blocks.7").replace("middle_block", "x").replace("output_blocks", "y"): torch.zeros_like(value)
            for name, value in tensors.items()
        },
        folder / "foreign.safetensors",
        metadata,
    )
    server.get("/object_info/KindredLoad")
    with pytest.raises(PromptError, match="another architecture"):
        server.run(
            {
                "1": CHECKPOINT,
                "2": {"class_type": "KindredLoad", "inputs": {"model": ["1", 0], "clip": ["1", 1], "name": "foreign", "strength": 1.0}},
                **draw(["2", 0], ["2", 1], "a <v1> dog"),
            }
        )


def test_the_pack_starts_fast_and_silently(server):
    """The host's own line of import times, and nothing of ours among errors and warnings."""
    log = server.log.read_text("utf-8", "replace")
    line = next(line for line in log.splitlines() if "seconds" in line and line.rstrip().endswith("ComfyUI-Kindred"))
    assert "IMPORT FAILED" not in line
    assert float(line.split("seconds")[0].split()[-1].removesuffix("s")) <= 0.2, line
    start = log[: log.index("To see the GUI")]
    assert not [line for line in start.splitlines() if ("ERROR" in line or "WARNING" in line or "Traceback" in line or "Exception" in line)], start
