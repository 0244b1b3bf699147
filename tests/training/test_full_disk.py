"""A disk that is full in mid-run, at the end, at an interrupt: the system itself refuses to write more (a limit on the size of a file)."""

import contextlib
import resource
from pathlib import Path

import pytest
import torch
from kindred_testing import pack
from kindred_testing.models import sd15

SETTINGS = {"method": "kv + token", "steps": 4, "resolution": 64, "batch_size": 1, "seed": 3, "precision": "fp32"}


@pytest.fixture(scope="module")
def base():
    return sd15()


@pytest.fixture(scope="module")
def concept():
    return pack("training.data.concept").make_concept([torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))], "<v1>", "dog")


@contextlib.contextmanager
def full(size: int):
    """Within, no file can grow beyond `size` bytes, in this process."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def train(base, concept, root, on_step=None, every=1, resume="new run", **changes):
    trainer, said = pack("training.trainer"), []
    keeping = trainer.Keeping(root, "dog", every, resume, said.append)
    try:
        with torch.inference_mode():
            return trainer.train(*base, [concept], trainer.TrainSettings(**{**SETTINGS, **changes}), on_step, keeping=keeping), said
    except BaseException as error:
        error.said = said
        raise


@pytest.fixture(scope="module")
def whole(base, concept, tmp_path_factory):
    """The result with all the room there is."""
    return train(base, concept, tmp_path_factory.mktemp("whole"))[0]


def same(a, b) -> bool:
    return a.lora.keys() == b.lora.keys() and all(torch.equal(a.lora[key], b.lora[key]) for key in a.lora) and a.history == b.history


def test_a_full_disk_costs_neither_the_training_nor_its_result(base, concept, whole, tmp_path):
    """Case 49. From the second step on nothing can be written: all four steps are trained, and the result is the one of a disk with room."""
    with contextlib.ExitStack() as room:

        def on_step(step):
            if step.step == 2:
                room.enter_context(full(4096))

        result, said = train(base, concept, tmp_path, on_step)
    assert same(result, whole)
    assert "state after step 2 could not be kept" in said[0] and "Training goes on" in said[0] and "state after step 1 is kept" in said[0]
    assert len(said) == 2 and "training is done, but its result could not be kept" in said[1] and "Save Concept" in said[1]
    assert [path.name for path in (tmp_path / "dog").iterdir()] == ["state-00000001.safetensors"]
    again, _ = train(base, concept, tmp_path, resume="continue")
    assert same(again, whole)


def test_room_again_is_said_and_used(base, concept, tmp_path):
    with contextlib.ExitStack() as room:

        def on_step(step):
            if step.step == 1:
                room.enter_context(full(4096))
            if step.step == 3:
                room.close()

        _, said = train(base, concept, tmp_path, on_step)
    assert "after step 1 could not be kept" in said[0] and said[1:] == ["States are kept again, since step 3."]
    assert [path.name for path in (tmp_path / "dog").iterdir()] == ["state-00000004.safetensors"]


class Halt(BaseException):
    """As the host's interrupt, no Exception."""


def test_an_interrupt_on_a_nearly_full_disk_rescues_the_small_files(base, concept, tmp_path):
    """Case 49. Room for the concept and none for a state, which is three times as large: the concept's files are there, and load."""
    with contextlib.ExitStack() as room:

        def on_step(step):
            if step.step == 1:
                (state,) = (tmp_path / "reference" / "dog").glob("state-*")
                room.enter_context(full(state.stat().st_size * 2 // 3))
            if step.step == 2:
                raise Halt

        train(base, concept, tmp_path / "reference", steps=1)  # a state: three times the size of what was learned
        with pytest.raises(Halt) as error:
            train(base, concept, tmp_path / "runs", on_step, every=100)
    (said,) = error.value.said
    files = {path.parent.name: path for path in (tmp_path / "runs" / "dog" / "concept").rglob("*.safetensors")}
    assert set(files) == {"loras", "embeddings"} and str(files["loras"]) in said and "state could not be kept" in said and "goes on from there" not in said
    lora, _ = pack("formats.safefile").read(files["loras"])
    assert lora and all(value.abs().max() > 0 for value in lora.values())
    assert sorted(path.name for path in (tmp_path / "runs" / "dog").iterdir()) == ["concept"]


def test_previews_that_cannot_be_written_are_told_once(base, concept, whole, tmp_path):
    drawn = []

    def preview(run, done):
        drawn.append(done)
        with full(0):
            Path(tmp_path / "preview.png").write_bytes(b"x")

    trainer, said = pack("training.trainer"), []
    with torch.inference_mode():
        result = trainer.train(
            *base, [concept], trainer.TrainSettings(**SETTINGS), keeping=trainer.Keeping(tmp_path, "dog", 100, tell=said.append), preview=preview
        )
    assert same(result, whole) and drawn == [1, 2, 3, 4]
    assert len(said) == 1 and "preview after step 1 could not be written (File too large)" in said[0]


def test_nothing_kept_still_continues_and_never_starts_from_zero(base, concept, whole, tmp_path):
    """save_every 0 with resume 'continue': a state that is there is used, and without one the run is refused."""
    with pytest.raises(ValueError, match="no interrupted training 'dog'"):
        train(base, concept, tmp_path, every=0, resume="continue")

    def halt(step):
        if step.step == 2:
            raise Halt

    with pytest.raises(Halt):
        train(base, concept, tmp_path, halt)
    steps = []
    result, said = train(base, concept, tmp_path, lambda step: steps.append(step.step), every=0, resume="continue")
    assert same(result, whole) and steps == [3, 4] and "goes on after step 2" in said[0]
