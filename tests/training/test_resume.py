"""Stopped, killed, changed, out of memory: a run goes on as if nothing had happened, or says why it cannot."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from kindred_testing import COMFYUI, ROOT, pack
from kindred_testing.models import sd15, sd15_checkpoint
from kindred_testing.training import beyond_limits
from safetensors.torch import load_file

# Everything that has a state of its own: two adapters and a token, momentum, warm-up and cosine, average, accumulation, prior images.
FULL = {
    "method": "lora + token",
    "train_text_encoder": True,
    "rank": 4,
    "steps": 4,
    "batch_size": 1,
    "accumulation": 2,
    "schedule": "cosine",
    "warmup_steps": 1,
    "ema_decay": 0.9,
    "vectors": 2,
    "direction_only": True,
    "caption_dropout": 0.2,
    "resolution": 64,
    "seed": 11,
}


@pytest.fixture(scope="module")
def base():
    return sd15()


@pytest.fixture(scope="module")
def concept():
    draw = torch.Generator().manual_seed(3)
    photos, prior = torch.rand(3, 80, 64, 3, generator=draw), torch.rand(2, 64, 64, 3, generator=draw)
    return pack("training.data.concept").make_concept([photos], "<v1>", "dog", prior_images=[prior])


def train(base, concept, settings, place=None, resume="new run", every=2, beyond=None, **rest):
    trainer, said = pack("training.trainer"), []
    keeping = trainer.Keeping(place, "dog", every, resume, said.append) if place else None
    with torch.inference_mode():
        return trainer.train(*base, [concept], beyond_limits(trainer.TrainSettings(**settings), **(beyond or {})), keeping=keeping, **rest), said


def same(a, b) -> bool:
    pairs = ((a.lora, b.lora), (a.tokens[0].vectors, b.tokens[0].vectors))
    equal = [{name: torch.equal(value, second[name]) for name, value in first.items()} for first, second in pairs]
    return all(all(part.values()) for part in equal) and a.lora.keys() == b.lora.keys() and a.history == b.history


@pytest.fixture(scope="module")
def uninterrupted(base, concept):
    return train(base, concept, FULL)[0]


class Halt(BaseException):
    """As the host's interrupt, no Exception."""


def halting(at):
    def on_step(step):
        if step.step == at:
            raise Halt

    return on_step


@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupted_run_goes_on_bit_for_bit(base, concept, uninterrupted, tmp_path, at):
    said = []
    trainer = pack("training.trainer")
    keeping = trainer.Keeping(tmp_path, "dog", 2, tell=said.append)
    with torch.inference_mode(), pytest.raises(Halt):
        trainer.train(*base, [concept], trainer.TrainSettings(**FULL), halting(at), keeping=keeping)
    assert f"stopped after step {at} of 4" in said[-1] and str(tmp_path / "dog" / "concept") in said[-1]
    saved = list((tmp_path / "dog" / "concept").rglob("*.safetensors"))
    assert {path.parent.name for path in saved} == {"loras", "embeddings"}  # usable as they are
    result, said = train(base, concept, FULL, tmp_path, "continue")
    assert f"goes on after step {at}" in said[0]
    assert same(result, uninterrupted)
    # The finished run is found again, whatever happened to what came after it, and costs no step.
    steps = []
    again, said = train(base, concept, FULL, tmp_path, "continue", on_step=steps.append)
    assert same(again, uninterrupted) and not steps and "finished before" in said[0]
    assert len(list((tmp_path / "dog").glob("state-*"))) == 1


def test_two_states_are_kept_and_the_older_one_serves_when_the_newer_is_damaged(base, concept, uninterrupted, tmp_path):
    """Case 51: one bit of one weight is enough."""
    with pytest.raises(Halt):
        train(base, concept, FULL, tmp_path, every=1, on_step=halting(3))
    states = sorted((tmp_path / "dog").glob("state-*"))
    assert [path.stem for path in states] == ["state-00000002", "state-00000003"]
    content = bytearray(states[1].read_bytes())
    content[-3] ^= 1
    states[1].write_bytes(content)
    result, said = train(base, concept, FULL, tmp_path, "continue")
    assert "'state-00000003.safetensors' of 'dog' was left aside" in said[0] and "goes on after step 2" in said[0] and same(result, uninterrupted)


def test_another_run_is_refused_and_the_difference_named(base, concept, tmp_path):
    with pytest.raises(Halt):
        train(base, concept, FULL, tmp_path, on_step=halting(2))
    with pytest.raises(ValueError, match="rank was 4, is 8; seed was 11, is 12"):
        train(base, concept, {**FULL, "rank": 8, "seed": 12}, tmp_path, "continue")
    other = pack("training.data.concept").make_concept([torch.rand(3, 80, 64, 3)], "<v1>", "dog", prior_images=[concept.prior_images[0][None]])
    with pytest.raises(ValueError, match=r"the photos of <v1> was 3 \(.*the prior images of <v1> was 2 .*is 1"):
        train(base, other, FULL, tmp_path, "continue")
    with pytest.raises(ValueError, match="the model was"):
        train(sd15(1), concept, FULL, tmp_path, "continue")
    with pytest.raises(ValueError, match="no interrupted training 'dog' to continue"):
        train(base, concept, FULL, tmp_path / "elsewhere", "continue")


def test_a_new_run_never_touches_another(base, concept, tmp_path):
    short = {**FULL, "steps": 1, "warmup_steps": 0}
    for name in ("dog", "dog_2"):
        train(base, concept, short, tmp_path)
        assert (tmp_path / name / "state-00000001.safetensors").is_file()


def test_a_loss_that_is_no_number_keeps_the_last_good_state(base, concept, tmp_path):
    settings = {"steps": 6, "resolution": 64, "clip_norm": 0.0, "augment": False}
    with pytest.raises(FloatingPointError, match=r"(?s)Lower learning_rate.*state after step (\d) is kept in 'dog'") as error:
        train(base, concept, settings, tmp_path, every=100, beyond={"learning_rate": 1e30})
    (state,) = (tmp_path / "dog").glob("state-*")
    done = int(state.stem.split("-")[1])
    assert f"at step {done + 1}." in str(error.value)
    good = {name: value for name, value in load_file(state).items() if name.startswith("state.parameters")}
    assert good and all(torch.isfinite(value).all() for value in good.values())


def test_out_of_memory_keeps_what_was_learned_and_says_what_needs_less(base, concept, tmp_path):
    """The host's own exception arrives, with a sentence in front; everything is cleaned up as after any error."""
    import comfy.model_management

    def on_step(step):
        if step.step == 2:
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB.")

    with pytest.raises(
        torch.OutOfMemoryError, match=r"needs about .* GB.*gradient_checkpointing.*about .* GB; set batch_size to 1 and accumulation to 2.*Tried to allocate"
    ):
        train(base, concept, {"steps": 4, "resolution": 64}, tmp_path, every=100, on_step=on_step)
    assert [path.stem for path in (tmp_path / "dog").glob("state-*")] == ["state-00000002"]
    assert comfy.model_management.in_training is False and torch.is_grad_enabled()


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(base, concept, tmp_path, monkeypatch):
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10**12, 10**12, 1000))
    with pytest.raises(ValueError, match=r"0\.0 GB are free\. Make room, lower keep_steps, or set save_every to 0"):
        train(base, concept, {"steps": 2, "resolution": 64}, tmp_path, on_step=halting(1))
    assert not list(tmp_path.iterdir())  # and nothing is left behind
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be made"):
        train(base, concept, {"steps": 2, "resolution": 64}, tmp_path / "file", on_step=halting(1))


def test_previews_change_nothing(base, concept, uninterrupted):
    """Drawn with Personalization Guidance in mid-run, through the host's sampler; the run's bits and the base model stay."""
    shown = []
    settings = pack("training.settings").WatchSettings(2, "a photo of a {token} {class} on the beach", 0.4, 5.0)
    watch = pack("training.watching").make_watch(settings, lambda step, drawn, folder: shown.extend((step, one.picture) for one in drawn))
    before = {name: value.clone() for name, value in base[0].model.state_dict().items()}
    result, _ = train(base, concept, FULL, watch=watch)
    assert same(result, uninterrupted)
    assert [step for step, _ in shown] == [2, 4]
    assert all(picture.shape == (64, 64, 3) and picture.std() > 0 for _, picture in shown)
    assert not torch.equal(shown[0][1], shown[1][1])
    assert all(torch.equal(value, before[name]) or value.isnan().any() for name, value in base[0].model.state_dict().items())


# -- in processes of their own ---------------------------------------------------------------------------------------------

RECIPE = """
checkpoint = "{checkpoint}"
name = "biscuit"
[train]
method = "kv + token"
steps = {steps}
resolution = 64
learning_rate = 1e-3
seed = 4
[[concept]]
photos = "photos"
token = "<v1>"
class_word = "dog"
[save]
every = 1
dtype = "float32"
overwrite = true
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    from PIL import Image

    place = tmp_path_factory.mktemp("recipe")
    (place / "photos").mkdir()
    draw = torch.Generator().manual_seed(8)
    for index in range(3):
        pixels = (torch.rand(72, 96, 3, generator=draw) * 255).byte().numpy()
        Image.fromarray(pixels).save(place / "photos" / f"{index}.png")
    file = place / "biscuit.toml"
    file.write_text(RECIPE.format(checkpoint=sd15_checkpoint(), steps=8))
    return file


def headless(base, *arguments, launcher=(sys.executable,)):
    for name in ("custom_nodes", "input", "output", "models/checkpoints", "models/loras", "models/embeddings"):
        (base / name).mkdir(parents=True, exist_ok=True)
    command = [*launcher, str(ROOT / "headless.py"), "--comfyui", str(COMFYUI), "--base-directory", str(base), "--cpu", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def learned(base):
    files = [base / "models" / "loras" / "kindred" / "biscuit.safetensors", base / "models" / "embeddings" / "biscuit.safetensors"]
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_the_uninterrupted_one(recipe, tmp_path):
    """kill -9 twice, each time at a moment of chance after the first state, also in the middle of writing one."""
    whole = headless(tmp_path / "whole", recipe)
    output = whole.communicate()[0]
    assert whole.returncode == 0, output
    chance, place = random.Random(5), tmp_path / "killed" / "output" / "kindred" / "runs" / "biscuit"
    seen, resume = 0, ()
    for _ in range(2):
        run = headless(tmp_path / "killed", recipe, *resume)
        deadline = time.monotonic() + 300
        while run.poll() is None and len([p for p in place.glob("state-*") if int(p.stem[-8:]) > seen]) < 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(chance.random() * 0.4)
        run.send_signal(signal.SIGKILL)
        run.communicate()
        seen, resume = max(int(path.stem[-8:]) for path in place.glob("state-*")), ("--resume",)
    last = headless(tmp_path / "killed", recipe, "--resume")
    output = last.communicate()[0]
    assert last.returncode == 0 and ("goes on after step" in output or "finished before" in output), output
    first, second = learned(tmp_path / "whole"), learned(tmp_path / "killed")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    histories = [
        load_file(next((tmp_path / name / "output" / "kindred" / "runs" / "biscuit").glob("state-*")))["state.history"] for name in ("whole", "killed")
    ]
    assert len(histories[0]) == 8 and torch.equal(histories[0], histories[1])
    left = [path for path in (tmp_path / "killed").rglob(".*") if path.suffix == ".part" or path.name.startswith(".tmp")]
    assert not left, "case 52: what a killed process left half-written is still there"


@pytest.mark.slow
def test_two_processes_learn_what_one_does(recipe, tmp_path):
    """`accelerate launch` with two CPU processes and the same global batch: the same weights to 1e-5. Continued, both load what the first one chose."""
    file = recipe.with_name("two.toml")
    file.write_text(recipe.read_text().replace("steps = 8", "steps = 4\nbatch_size = 3").replace("every = 1", "every = 3"))
    accelerate = (
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    )
    results = []
    for name, launcher in (("one", (sys.executable,)), ("two", accelerate)):
        run = headless(tmp_path / name, file, launcher=launcher)
        output = run.communicate()[0]
        assert run.returncode == 0, output
        assert output.count("is trained and saved") == 1, output
        results.append(learned(tmp_path / name))
    again = headless(tmp_path / "two", file, "--resume", launcher=accelerate)
    output = again.communicate()[0]
    assert again.returncode == 0 and output.count("finished before") == 1, output
    one, two = results
    assert all(torch.equal(value, two[name]) for name, value in learned(tmp_path / "two").items())
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert (value - two[name]).norm() <= 1e-5 * value.norm() + 1e-9, name


def test_ctrl_c_stops_after_the_step_and_files_that_fail_do_not_stop_the_others(recipe, tmp_path):
    bad = recipe.with_name("bad.toml")
    bad.write_text(recipe.read_text().replace("learning_rate", "learning_rat"))
    long = recipe.with_name("long.toml")
    long.write_text(recipe.read_text().replace("steps = 8", "steps = 500"))
    run = headless(tmp_path, bad, long)
    lines = []
    for line in run.stdout:
        lines.append(line)
        if "1/500" in line or "/500 " in line:
            run.send_signal(signal.SIGTERM)
            break
    lines += list(run.stdout)
    output = "".join(lines)
    assert run.wait() == 130, output
    assert "bad.toml: [train] has the unknown entry 'learning_rat'; did you mean 'learning_rate'?" in output
    assert "stopped after step" in output and "resume 'continue'" in output
