"""Recipes one after another in a real process: what one of them does wrong stays with it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kindred_testing import COMFYUI, ROOT, pack
from kindred_testing.models import sd15_checkpoint
from PIL import Image
from safetensors.torch import save_file

RECIPE = """
checkpoint = "{checkpoint}"
name = {name}
[train]
method = "kv + token"
steps = 1
resolution = {resolution}
learning_rate = 1e-3
[[concept]]
photos = "photos"
token = "<v1>"
class_word = "dog"
[save]
every = 0
overwrite = true
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "photos").mkdir()
    Image.new("RGB", (72, 96), "brown").save(folder / "photos" / "only.png")
    whole = Path(sd15_checkpoint()).read_bytes()
    (folder / "damaged.safetensors").write_bytes(whole[: len(whole) // 2])
    save_file({"a": torch.zeros(4)}, folder / "nothing.safetensors")
    return folder


def recipe(place, file, checkpoint=None, name=None, resolution=64):
    path = place / f"{file}.toml"
    path.write_text(RECIPE.format(checkpoint=checkpoint or sd15_checkpoint(), name=name or f'"{file}"', resolution=resolution))
    return path


@pytest.mark.slow
def test_whatever_goes_wrong_ends_one_recipe_and_no_other(place, tmp_path):
    """Case 55. A damaged checkpoint, one that is no model, a value of the wrong type, memory that is not there; the last one is learned."""
    for name in ("custom_nodes", "input", "output", "models/checkpoints", "models/loras", "models/embeddings"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models/embeddings/good.pt").write_bytes(b"another tool's")
    files = [
        recipe(place, "damaged", "damaged.safetensors"),
        recipe(place, "nothing", "nothing.safetensors"),
        recipe(place, "typed", name="[1, 2]"),
        recipe(place, "huge", resolution=8_000_000),
        recipe(place, "named", name='"a/b"'),
        recipe(place, "good"),
    ]
    command = [sys.executable, str(ROOT / "headless.py"), "--comfyui", str(COMFYUI), "--base-directory", str(tmp_path), "--cpu", *map(str, files)]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 1 and "Traceback" not in run.stdout, run.stdout
    for words in (
        "kindred: damaged.toml: The checkpoint 'damaged.safetensors' cannot be loaded (",
        "kindred: nothing.toml: ",
        "kindred: typed.toml: ",
        "kindred: huge.toml: ",
        "kindred: named.toml: The name 'a/b' contains '/'",
        "kindred: good.toml is trained and saved as 'good_2'",
        "embeddings/good.pt is not part of a saved concept 'good', so it was not replaced.",
        "kindred: 5 of 6 files failed: damaged.toml, nothing.toml, typed.toml, huge.toml, named.toml",
    ):
        assert words in run.stdout, (words, run.stdout)
    assert "1/1   loss" in run.stdout
    assert [path.name for path in (tmp_path / "models/loras/kindred").glob("*.safetensors")] == ["good_2.safetensors"]


@pytest.mark.slow
def test_a_recipe_saves_the_best_step(place, tmp_path):
    for name in ("custom_nodes", "input", "output", "models/checkpoints", "models/loras", "models/embeddings"):
        (tmp_path / name).mkdir(parents=True)
    file = recipe(place, "best")
    file.write_text(file.read_text().replace("steps = 1", "steps = 3").replace("every = 0", 'every = 1\nwhich = "best"') + "[preview]\nheldout_every = 1\n")
    command = [sys.executable, str(ROOT / "headless.py"), "--comfyui", str(COMFYUI), "--base-directory", str(tmp_path), "--cpu", str(file)]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0 and run.stdout.count("held-out loss") == 3, run.stdout
    best = re.findall(r"best so far: step (\d)", run.stdout)[-1]
    assert f"Saved is the result after step {best}." in run.stdout
    _, metadata = pack("formats.safefile").read(tmp_path / "models/loras/kindred/best.safetensors")
    assert metadata["kindred.step"] == best


def test_the_hosts_interrupt_and_ctrl_c_stop_all_recipes_in_order(tmp_path, monkeypatch, capsys):
    """Neither is an Exception; the second file is not begun."""
    headless = pack("training.headless")
    import comfy.model_management

    for error in (KeyboardInterrupt, comfy.model_management.InterruptProcessingException):
        begun = []

        def interrupted(file, *_, error=error, begun=begun):
            begun.append(file.name)
            raise error

        monkeypatch.setattr(headless, "_train", interrupted)
        assert headless.run([Path("one.toml"), Path("two.toml")]) == 130
        assert begun == ["one.toml"] and "stopped in one.toml" in capsys.readouterr().err
