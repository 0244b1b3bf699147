"""Case 38. Other packs' text encoder nodes replace the tokenizer's methods for a while, or for good: tokens are read afterwards, or somebody says not."""

import copy
import types

import pytest
import torch
from kindred_testing import pack, text_models

PROMPT = "a photo of a <v1> dog"


def carry(clip, *texts):
    text = pack("host.text")
    widths = text.embedding_widths(clip)
    vectors = {name: {key: torch.full((1, width), 0.01 * len(name)) for key, width in widths.items()} for name in texts}
    return text.carry_tokens(clip, [pack("formats.token").LearnedToken(name, "dog", vectors[name]) for name in texts])


def vectors_of(tokens) -> list[float]:
    """The first number of each vector in the token lists of all encoders."""
    return [float(entry[0][0]) for chunks in tokens.values() for chunk in chunks for entry in chunk if torch.is_tensor(entry[0])]


@pytest.fixture(params=["sd15", "sdxl"])
def clip(request):
    return text_models.FAMILIES[request.param]()


def parts(clip):
    return [value for value in vars(clip.tokenizer).values() if hasattr(value, "tokenize_with_weights")]


def test_nothing_of_ours_stands_in_the_tokenizers_attributes(clip):
    """A parser walks through them and expects an encoder of the same name for each tokenizer that it finds."""
    carried = carry(carry(clip, "<v1>"), "<v22>")
    assert list(vars(carried.tokenizer)) == list(vars(clip.tokenizer))
    for own, host in zip(parts(carried), parts(clip), strict=True):
        assert list(vars(own)) == list(vars(host)) and isinstance(own, type(host)) and type(own).__name__ == type(host).__name__
    assert all(hasattr(carried.cond_stage_model, name) for name, value in vars(carried.tokenizer).items() if hasattr(value, "tokenize_with_weights"))


def test_a_method_replaced_on_the_instance_and_deleted(clip, caplog):
    carried = carry(clip, "<v1>")
    before = vectors_of(carried.tokenize(PROMPT))
    assert before and not caplog.text
    for part in parts(carried):
        plain = parts(clip)[0].tokenize_with_weights
        part.tokenize_with_weights = lambda text, *args, plain=plain, **kwargs: plain(text)
    assert vectors_of(carried.tokenize(PROMPT)) == []
    assert "names '<v1>', but another node parses the prompt itself" in caplog.text, "wrong, but not in silence"
    for part in parts(carried):
        del part.tokenize_with_weights
    caplog.clear()
    assert vectors_of(carried.tokenize(PROMPT)) == vectors_of(carried.clone().tokenize(PROMPT)) == before and not caplog.text
    assert len(vectors_of(carry(carried, "<v22>").tokenize("<v1> and <v22>"))) == 2 * len(before)


def test_a_method_replaced_on_the_class_and_put_back(clip):
    carried = carry(clip, "<v1>")
    before = vectors_of(carried.tokenize(PROMPT))
    for classes in ({type(part) for part in parts(clip)}, {type(part) for part in parts(carried)}, {type(carried.tokenizer)}):
        saved = {each: each.tokenize_with_weights for each in classes}
        for each in classes:
            each.tokenize_with_weights = lambda self, text, *args, **kwargs: {}
        for each, method in saved.items():
            each.tokenize_with_weights = method
        assert vectors_of(carried.tokenize(PROMPT)) == before


def test_a_method_kept_as_it_was_found_and_put_back_on_the_instance(clip):
    """Then it hides the class's from now on: also from a copy that carries other tokens, in another order."""
    carried = carry(clip, "<v1>")
    before = vectors_of(carried.tokenize(PROMPT))
    for each in [carried.tokenizer, *parts(carried)]:
        each.tokenize_with_weights = each.tokenize_with_weights
    assert vectors_of(carried.tokenize(PROMPT)) == before
    more = pack("host.text").carry_tokens(copy.copy(carried), pack("host.text").carried_tokens(carry(clip, "<v22>", "<v1>")).values())
    assert vectors_of(more.tokenize("<v22> and <v1>")) == pytest.approx([0.05, 0.04] * len(before))


def test_a_copy_of_the_attributes_alone_reads_the_tokens_too(clip):
    carried = carry(clip, "<v1>")
    other = carried.clone()
    other.tokenizer = type(carried.tokenizer).__new__(type(carried.tokenizer))
    for name, value in vars(carried.tokenizer).items():
        part = object.__new__(type(value)) if hasattr(value, "tokenize_with_weights") else value
        if part is not value:
            vars(part).update(vars(value))
        setattr(other.tokenizer, name, part)
    assert (
        vectors_of(other.tokenize(PROMPT)) == vectors_of(copy.deepcopy(carried.tokenizer).tokenize_with_weights(PROMPT)) == vectors_of(carried.tokenize(PROMPT))
    )


def test_a_lasting_hook_is_kept_with_the_tokens_above_it(clip):
    """A node that binds its own function to a copy of the tokenizer, or gives the copy a subclass, before our node or after it."""
    plain = type(clip.tokenizer).tokenize_with_weights
    wanted = carry(clip, "<v1>", "<v22>").tokenize("a <v1> and <v22> on the beach")

    bound = clip.clone()
    bound.tokenizer = copy.copy(clip.tokenizer)
    bound.tokenizer.tokenize_with_weights = types.MethodType(lambda self, text, *a, **k: plain(self, text.replace("PLACE", "beach"), *a, **k), bound.tokenizer)
    assert same(carry(carry(bound, "<v1>"), "<v22>").tokenize("a <v1> and <v22> on the PLACE"), wanted)

    derived = carry(clip, "<v1>")
    ours = type(derived.tokenizer)
    methods = {"tokenize_with_weights": lambda self, text, *a, **k: ours.tokenize_with_weights(self, text.replace("PLACE", "beach"), *a, **k)}
    derived.tokenizer = copy.copy(derived.tokenizer)
    derived.tokenizer.__class__ = type("Theirs", (ours,), methods)
    assert same(derived.tokenize("a <v1> on the PLACE"), carry(clip, "<v1>").tokenize("a <v1> on the beach"))
    assert same(carry(derived, "<v22>").tokenize("a <v1> and <v22> on the PLACE"), wanted)


def test_a_hook_that_cannot_see_the_tokens_is_refused(clip):
    for name in ("tokenize_with_weights", "_try_get_embedding"):
        other = copy.copy(clip)
        other.tokenizer = copy.copy(clip.tokenizer)
        key = next(key for key, value in vars(clip.tokenizer).items() if value is parts(clip)[0])
        leaf = copy.copy(parts(clip)[0])
        original = getattr(leaf, name)
        setattr(leaf, name, lambda *args, original=original, **kwargs: original(*args, **kwargs))
        setattr(other.tokenizer, key, leaf)
        with pytest.raises(ValueError, match=r"would not see '<v1>'\. Put that node after"):
            carry(other, "<v1>")


def same(ours, theirs) -> bool:
    """Equal token lists, vectors by their numbers."""
    if torch.is_tensor(ours):
        return torch.is_tensor(theirs) and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def test_a_second_concept_with_the_same_token_is_reported(clip):
    """Two Load Concepts in a row: the later token wins, which nobody would see in the picture's prompt."""
    text, token = pack("host.text"), pack("formats.token").LearnedToken
    carried = carry(clip, "<v1>", "<v22>")
    again = list(text.carried_tokens(carried).values())
    assert text.replaced_tokens(clip, again) == [] and text.replaced_tokens(carried, again) == []
    other = token("<v1>", "dog", {key: value + 1 for key, value in again[0].vectors.items()})
    (sentence,) = text.replaced_tokens(carried, [other, again[1]])
    assert "another token '<v1>'" in sentence
