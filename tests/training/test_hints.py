"""Case 45. What looks like a slip in an artist's words is said in a sentence, on the node and in the log; what may be meant is not."""

import pytest
import torch
from kindred_testing import pack, text_models


@pytest.mark.parametrize(
    ("word", "meant"), [("dgo", "dog"), ("teapto", "teapot"), ("bakcpack", "backpack"), ("catt", "cat"), ("peson", "person"), ("teddy baer", "bear")]
)
def test_a_misspelt_class_word_is_asked_about(word, meant):
    (hint,) = pack("host.text").spelling_hints(text_models.sdxl(), word)
    assert f"Did you mean {meant!r}?" in hint


def test_rare_names_and_encoders_without_whole_words_are_left_in_peace():
    text = pack("host.text")
    rare = "dog Dog teapot figurine corgi labradoodle cockatiel axolotl xylophone theremin gazebo 犬 café r2d2 <v1>"
    assert text.spelling_hints(text_models.sd15(), rare) == []
    assert text.spelling_hints(text_models.pixart(), "dgo") == []


@pytest.mark.parametrize("prompt", ["a <v1> dog on the beach", "<v1> Dogs", "a (<v1>:1.2) dog", "(a <v1> dog:1.1)", "embedding:<v1> dog"])
def test_another_kind_behind_the_token_is_noticed(prompt):
    (hint,) = pack("host.text").wrong_classes(prompt, {"<v1>": "bear"})
    assert "but the class word of <v1> is 'bear'" in hint


@pytest.mark.parametrize(
    ("prompt", "class_word"),
    [
        ("a <v1> bear", "bear"), ("a <v1> teddy bear", "bear"), ("a <v1> on the beach, a dog", "bear"), ("<v1>, dog", "bear"), ("a <v1> asleep", "bear"),
        ("a <v1> toy", "bear"), ("a <v1> puppy", "dog"), ("a <v1> dog bowl", "bowl"), ("a <v1> dog", "corgi"), ("a <v1> dog", "stuffed animal"), ("a <v1> dog", ""),
        ("a dog", "bear"), ("my<v1>dog house", "house"), ("two <v1> dogs", "dog"),
    ],
)  # fmt: skip
def test_what_may_be_meant_is_not(prompt, class_word):
    assert pack("host.text").wrong_classes(prompt, {"<v1>": class_word}) == []


def test_training_hints_at_both_and_tea_at_its_prompt():
    clip = text_models.sd15()
    concept = pack("training.data.concept").make_concept([torch.rand(2, 32, 32, 3)], "<v1>", "baer", captions="a <v1> dog\n")
    other = pack("training.data.concept").make_concept([torch.rand(1, 32, 32, 3)], "<v2>", "teapot", captions="a <v2> cup")
    said = pack("training.advice").hints(clip, [concept, other])
    assert len(said) == 2 and "'baer'" in said[0] and "<v2> cup" in said[1]
    with torch.inference_mode():
        carrying = pack("host.text").carry_tokens(clip, [pack("formats.token").LearnedToken("<v1>", "bear", {"clip_l": torch.randn(1, 768)})])
        assert "'<v1> dog'" in pack("embedding.prompt").encode_concept(carrying, "a <v1> dog").describe()
        assert len(pack("embedding.prompt").encode_concept(carrying, "a <v1> bear").describe().splitlines()) == 2


def test_the_hint_stands_on_the_node_for_the_whole_run():
    with pack("host.progress").TrainingProgress("4", 2, ["<v1>"], {"workflow": {"id": "hints"}}) as progress:
        progress.hint("Did you mean 'dog'?")
        assert progress.run.head()["note"] == "Did you mean 'dog'?"
        progress.step(_measured(1))
        assert progress.run.head()["note"] == "Did you mean 'dog'?"
    assert progress.run.state == "done" and progress.run.note == progress.run.head()["hint"] == "Did you mean 'dog'?"


def _measured(step):
    Step = pack("training.measures").Step
    numbers = {name: 0.5 for name in Step.__dataclass_fields__ if name not in ("step", "drift")}
    return Step(step=step, drift={}, **numbers)
