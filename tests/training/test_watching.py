"""Watching a run: what is measured on the way, that it costs the training not a bit, and which steps' files stay."""

import sys

import pytest
import torch
from kindred_testing import ROOT, pack
from kindred_testing.models import sd15

if str(ROOT / "dev" / "demo") not in sys.path:
    sys.path.append(str(ROOT / "dev" / "demo"))

# Everything that a measurement could disturb: an average, momentum, a token, a trained text encoder, fixed orders of random numbers.
FULL = {"method": "lora + token", "train_text_encoder": True, "rank": 2, "steps": 6, "ema_decay": 0.9, "resolution": 64, "batch_size": 1, "learning_rate": 1e-3, "seed": 11}  # fmt: skip


class Halt(BaseException):
    """As the host's interrupt, no Exception."""


@pytest.fixture(scope="module")
def base():
    return sd15()


def make(token, seed):
    photos = torch.rand(3, 80, 64, 3, generator=torch.Generator().manual_seed(seed))
    return pack("training.data.concept").make_concept([photos], token, "dog")


@pytest.fixture(scope="module")
def concept():
    return make("<v1>", 3)


def watch(scoring=None, **settings):
    given = {"heldout_every": 2, **settings}
    seen = []
    return pack("training.watching").make_watch(pack("training.settings").WatchSettings(**given), report=seen.append, scoring=scoring), seen


def train(base, concepts, settings=FULL, place=None, resume="new run", watch=None, on_step=None, every=2, keep=5):
    trainer, said = pack("training.trainer"), []
    keeping = trainer.Keeping(place, "dog", every, resume, said.append, keep) if place else None
    with torch.inference_mode():
        return trainer.train(*base, concepts, trainer.TrainSettings(**settings), on_step, keeping=keeping, watch=watch), said


def halting(at):
    def on_step(step):
        if step.step == at:
            raise Halt

    return on_step


def same(a, b) -> bool:
    pairs = ((a.lora, b.lora), (a.tokens[0].vectors, b.tokens[0].vectors))
    return a.history == b.history and all(
        first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first) for first, second in pairs
    )


@pytest.fixture(scope="module")
def alone(base, concept):
    """Nobody watches it."""
    return train(base, [concept])[0]


@pytest.fixture(scope="module")
def watched(base, concept):
    return train(base, [concept], watch=watch()[0])[0]


def test_the_held_out_loss_is_measured_and_changes_not_a_bit(alone, watched):
    assert same(alone, watched) and not alone.marks
    assert [mark.step for mark in watched.marks] == [2, 4, 6] and all(mark.heldout > 0 for mark in watched.marks)
    assert len({mark.heldout for mark in watched.marks}) == 3
    assert watched.lora.metadata["kindred.heldout_loss"] == f"{watched.marks[-1].heldout:.6g}" and float(watched.lora.metadata["kindred.leak"]) > 0
    assert "kindred.heldout_loss" not in alone.lora.metadata and alone.lora.metadata["ss_steps"] == "6"


def test_runs_of_the_same_photos_and_seed_are_measured_alike(base, concept, watched):
    """Another length, rhythm, rate and method: before anything is learned, all of them have the same loss."""
    longer, _ = train(base, [concept], {**FULL, "steps": 8}, watch=watch(heldout_every=4)[0])
    assert longer.marks[0].heldout == watched.marks[1].heldout
    plain = [
        train(base, [concept], {"method": method, "steps": 1, "resolution": 64, "batch_size": size, "learning_rate": 1e-12, "seed": 11}, watch=watch()[0])[0]
        .marks[0]
        .heldout
        for method, size in (("kv + token", 1), ("token", 3))
    ]
    assert plain[0] == pytest.approx(plain[1], rel=1e-5)


def test_no_step_ever_sees_a_held_out_view(concept):
    heldout, dataset = pack("training.heldout"), pack("training.data.dataset")
    for crop in ("square", "buckets"):
        data = dataset.Dataset([concept, make("<v2>", 4)], 64, 2, 200, 11, augment=True, crop=crop)
        held = heldout.HeldOut(data, 11)
        assert len(set(held.views)) == len(held.views) == heldout.ROWS and {view.concept for view in held.views} == {0, 1}
        assert not {view.size for view in held.views} & {view.size for view in data.views}


@pytest.mark.parametrize("at", [2, 3])
def test_a_stopped_run_goes_on_with_the_same_curve(base, concept, watched, tmp_path, at):
    """Also when it is stopped after a step that was to be measured, and before it was."""
    with pytest.raises(Halt):
        train(base, [concept], place=tmp_path, watch=watch()[0], on_step=halting(at))
    result, _ = train(base, [concept], place=tmp_path, resume="continue", watch=watch()[0])
    assert same(result, watched) and result.marks == watched.marks
    again, _ = train(base, [concept], place=tmp_path, resume="continue")
    assert again.marks == watched.marks, "a finished run remembers"


def scoring():
    """The miniature world's judge, as the demo gives it."""
    from base import fidelity
    from base.judge import STORED, Judge

    judge = Judge.load(STORED)
    return pack("training.scoring").Scoring([fidelity.PromptFidelity(judge), fidelity.SubjectFidelity(judge)])


def test_previews_of_all_concepts_are_scored_and_the_best_step_is_told(base, tmp_path):
    concepts, shown = [make("<v1>", 3), make("<v2>", 4)], []
    settings = {**FULL, "steps": 4, "batch_size": 1}
    prompts = "a {token} {class} on the moon\na photo of a {class}\n\na red cat"
    looking, seen = watch(scoring(), preview_every=2, preview_prompt=prompts)
    looking.show = lambda step, drawn, folder: shown.append((step, [(one.prompt, one.concept) for one in drawn]))
    result, said = train(base, concepts, settings, tmp_path, watch=looking)
    assert not said and same(result, train(base, concepts, settings)[0])
    turns = [("a <v1> dog on the moon", 0), ("a <v2> dog on the moon", 1), ("a photo of a dog", 0), ("a photo of a dog", 1), ("a red cat", None)]
    assert shown == [(2, turns), (4, turns)]
    assert [mark.step for mark in result.marks] == [2, 4] and all(
        None not in (mark.likeness, mark.prompt, mark.heldout) and mark.previewed for mark in result.marks
    )
    assert [one.mark for one in seen] == result.marks and seen[-1].best == result.lora.kept.best and 0 < seen[-1].share < 1


def test_a_scorer_that_fails_costs_the_scores_alone(base, alone, concept):
    looking, _ = watch(scoring(), preview_every=3, preview_prompt="nothing that the judge knows")
    told = []
    looking.tell = told.append
    result, _ = train(base, [concept], watch=looking)
    assert same(result, alone) and len(told) == 1 and "could not be scored" in told[0]
    assert [(mark.likeness, mark.prompt) for mark in result.marks if mark.previewed] == [(None, None)] * 2


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_the_files_of_a_step_are_those_of_a_run_that_was_stopped_there(base, concept, watched, tmp_path):
    """Bit for bit: the files beside the run, what a save of them in float32 gives, and the weights of a run of that length."""
    kept_steps, concept_file = pack("formats.kept_steps"), pack("formats.concept_file")
    result, _ = train(base, [concept], place=tmp_path / "whole", watch=watch()[0])
    with pytest.raises(Halt):
        train(base, [concept], place=tmp_path / "stopped", watch=watch()[0], on_step=halting(5))
    whole, stopped = (files(tmp_path / name / "dog" / "steps") for name in ("whole", "stopped"))
    assert whole.keys() == {f"{kind}/dog-step{step}.safetensors" for kind in ("loras", "embeddings") for step in (2, 4, 6)}
    assert all(whole[name] == content for name, content in stopped.items()) and len(stopped) == 4

    short, _ = train(base, [concept], {**FULL, "steps": 4}, watch=watch()[0])
    lora, tokens, step = kept_steps.choose("4", result.lora, result.tokens)
    assert step == 4 and same(short, pack("training.measures").Trained(lora, tokens, short.history))
    assert lora.metadata["kindred.step"] == "4" and lora.metadata["kindred.heldout_loss"] == f"{watched.marks[1].heldout:.6g}"
    again = concept_file.save(lora, tokens, "dog-step4", tmp_path / "again" / "loras", tmp_path / "again" / "embeddings", dtype=torch.float32)
    assert again.lora.read_bytes() == whole["loras/dog-step4.safetensors"] and again.embeddings[0].read_bytes() == whole["embeddings/dog-step4.safetensors"]


def test_a_run_stopped_in_the_step_writes_the_same_bytes(base, concept, tmp_path):
    """The rescue of an interrupted run, and the step that was kept on the way, are written by the same code from the same numbers."""
    train(base, [concept], place=tmp_path / "whole", watch=watch(heldout_every=0, preview_every=3)[0])

    def halt(run, done):
        if done == 3:
            raise Halt

    trainer = pack("training.trainer")
    looking, _ = watch(heldout_every=0, preview_every=3)
    with torch.inference_mode(), pytest.raises(Halt):
        keeping = trainer.Keeping(tmp_path / "stopped", "dog", 2, tell=lambda _: None)
        trainer.train(*base, [concept], trainer.TrainSettings(**FULL), keeping=keeping, watch=looking, preview=halt)
    rescued, kept = files(tmp_path / "stopped" / "dog" / "concept"), files(tmp_path / "whole" / "dog" / "steps")
    assert len(rescued) == 2 and all(kept[name] == content for name, content in rescued.items())


def test_only_the_last_few_and_the_best_stay(base, concept, tmp_path):
    result, _ = train(base, [concept], place=tmp_path, watch=watch(heldout_every=1)[0], keep=2)
    best = result.lora.kept.best
    assert result.lora.kept.steps == sorted({5, 6, best})
    assert {path.name for path in (tmp_path / "dog" / "steps" / "embeddings").iterdir()} == {f"dog-step{step}.safetensors" for step in {5, 6, best}}
    choose = pack("formats.kept_steps").choose
    lora, _, step = choose(" Best ", result.lora, result.tokens)
    assert step == best and lora.metadata["kindred.step"] == str(best)
    with pytest.raises(ValueError, match=r"Step 3 was not kept\. The kept steps are .*5, 6, and the last is 6"):
        choose("3", result.lora, result.tokens)
    with pytest.raises(ValueError, match="expected 'last', 'best' or the number of a step"):
        choose("first", result.lora, result.tokens)
    with pytest.raises(ValueError, match="carries no steps to choose from"):
        choose("best", dict(result.lora), result.tokens)
    turned = pack("formats.token").LearnedToken("<v1>", "dog", {key: value + 1 for key, value in result.tokens[0].vectors.items()})
    with pytest.raises(ValueError, match="tokens were changed after the training"):
        choose("best", result.lora, [turned])


def test_best_is_refused_where_nothing_was_measured(base, concept, tmp_path):
    result, _ = train(base, [concept], {**FULL, "steps": 1, "warmup_steps": 0}, tmp_path, watch=watch(heldout_every=0, preview_every=1)[0])
    with pytest.raises(ValueError, match="the training measured nothing to tell by"):
        pack("formats.kept_steps").choose("best", result.lora, result.tokens)
