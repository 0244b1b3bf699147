"""A finished or stopped run goes on: for more steps, with other rates and weights; and a run that has come to a plateau stops by itself."""

import pytest
import torch
from kindred_testing import pack
from kindred_testing.models import sd15

SETTINGS = {"method": "lora + token", "rank": 2, "steps": 3, "batch_size": 1, "resolution": 64, "learning_rate": 1e-3, "ema_decay": 0.9, "seed": 2}


@pytest.fixture(scope="module")
def base():
    return sd15()


@pytest.fixture(scope="module")
def concept():
    return pack("training.data.concept").make_concept([torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))], "<v1>", "dog")


def train(base, concept, root=None, resume="new run", watch=None, on_step=None, **changes):
    trainer, said = pack("training.trainer"), []
    keeping = trainer.Keeping(root, "dog", 2, resume, said.append) if root else None
    with torch.inference_mode():
        return trainer.train(*base, [concept], trainer.TrainSettings(**{**SETTINGS, **changes}), on_step, keeping=keeping, watch=watch), said


def equal(a, b) -> bool:
    return all(torch.equal(a.lora[key], b.lora[key]) for key in a.lora) and torch.equal(a.tokens[0].vectors["clip_l"], b.tokens[0].vectors["clip_l"])


def test_a_finished_run_goes_on_as_a_longer_one(base, concept, tmp_path):
    train(base, concept, tmp_path)
    result, said = train(base, concept, tmp_path, "continue", steps=5)
    assert "With changes after step 3: steps was 3, is 5." in said[0] and "goes on after step 3" in said[0]
    assert equal(result, train(base, concept, steps=5)[0]), "bit for bit"
    assert result.lora.metadata["kindred.changes"] == "after step 3: steps was 3, is 5" and result.lora.metadata["kindred.steps"] == "5"
    again, said = train(base, concept, tmp_path, "continue", steps=5)
    assert equal(again, result) and "finished before" in said[0] and again.lora.metadata["kindred.changes"] == result.lora.metadata["kindred.changes"]
    with pytest.raises(ValueError, match=r"steps is 4, but this training has done 5 steps already.*steps was 5, is 4"):
        train(base, concept, tmp_path, "continue", steps=4)


def test_rates_and_weights_change_from_that_step_on(base, concept, tmp_path):
    first, _ = train(base, concept, tmp_path)
    changes = {"steps": 6, "learning_rate": 5e-4, "spl_weight": 0.5}
    result, said = train(base, concept, tmp_path, "continue", **changes)
    assert "learning_rate was 0.001, is 0.0005" in said[0] and "spl_weight was 1.0, is 0.5" in said[0]
    assert result.history[:3] == first.history and [step.learning_rate for step in result.history] == [1e-3] * 3 + [5e-4] * 3
    with pytest.raises(ValueError, match=r"nothing is left to train with what was changed .*learning_rate was 0\.0005, is 0\.001"):
        train(base, concept, tmp_path, "continue", **{**changes, "learning_rate": 1e-3})


def test_what_would_break_exactness_is_refused_by_name(base, concept, tmp_path):
    train(base, concept, tmp_path, schedule="cosine")
    with pytest.raises(ValueError, match=r"steps was 3, is 5\. Set it back.*Steps \(with a constant schedule\), learning rates"):
        train(base, concept, tmp_path, "continue", schedule="cosine", steps=5)
    with pytest.raises(ValueError, match=r"rank was 2, is 4; schedule was cosine, is constant\. Set it back"):
        train(base, concept, tmp_path, "continue", rank=4, steps=5)


def test_a_plateau_ends_a_run_if_it_is_asked_to_and_the_run_can_still_go_on(base, concept, tmp_path, monkeypatch):
    """The held-out loss is given here: what a plateau is does not depend on where its numbers come from."""
    curve = [0.5, 0.3, 0.31, 0.32, 0.2, 0.1]
    heldout = pack("training.heldout").HeldOut
    monkeypatch.setattr(heldout, "loss", lambda self, run: curve[len(run.history.steps) - 1])
    make, settings = pack("training.watching").make_watch, pack("training.settings").WatchSettings
    result, said = train(base, concept, tmp_path, watch=make(settings(heldout_every=1, stop_after=2)), steps=6)
    assert len(result.history) == 4 and result.lora.kept.best == 2 and result.lora.kept.last == 4
    assert "Stopped after step 4 of 6: step 2 is still the best, 2 measured steps later." in said[-1]
    steps = []
    again, said = train(base, concept, tmp_path, "continue", make(settings(heldout_every=1, stop_after=2)), steps.append, steps=6)
    assert equal(again, result) and not steps and "finished before" in said[0]
    on, _ = train(base, concept, tmp_path, "continue", make(settings(heldout_every=1)), steps=6)
    assert len(on.history) == 6 and on.lora.kept.best == 6 and equal(on, train(base, concept, steps=6)[0])
