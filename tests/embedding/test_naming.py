"""Case 39. Whether a prompt names a token is one question with one answer: what the host's encoders then read."""

import random

import pytest
import torch
from kindred_testing import pack, text_models

TOKENS = ("<v1>", "<v12>", "sks", "zorbo", "embedding:foo", "[x]", "a-b", "犬", "ß", "my<v1>")
PIECES = (
    *TOKENS, *" ,.:;!?()[]<>{}|/\\\"'\n\t_-", "  ", "((", "))", "\\(", "\\)", ":1.2)", ":0)", "embedding:", " embedding:", "embedding:bar", "embedding:sks", "b", "s", "1",
    "asks", "sksy", "SKS", "nian", "dog", "a photo of", "pre", ".safetensors", ".pt", "犬犬", "é", "🐕", "\ue000", "\ue000" + "0", "\x00", "\u200b", "AND", "BREAK",
)  # fmt: skip


@pytest.fixture(params=["sd15", "t5"])
def clip(request):
    return text_models.FAMILIES[request.param]()


@pytest.fixture
def carrying(clip):
    text, Token = pack("host.text"), pack("formats.token").LearnedToken
    widths = text.embedding_widths(clip)
    tokens = [Token(name, "dog", {key: torch.full((1, width), float(index + 1)) for key, width in widths.items()}) for index, name in enumerate(TOKENS)]
    return text.carry_tokens(clip, tokens)


def read_by_encoder(clip, prompt: str) -> set[str]:
    """The tokens whose vectors stand in the token lists of `prompt`."""
    entries = [entry[0] for chunks in clip.tokenize(prompt).values() for chunk in chunks for entry in chunk]
    return {TOKENS[int(entry[0]) - 1] for entry in entries if torch.is_tensor(entry)}


def test_what_is_named_is_what_the_encoder_reads(clip, carrying):
    """600 prompts of pieces that prompts, tokens and the host's syntax have in common."""
    draw, named, silent = random.Random(39), 0, 0
    for _ in range(600):
        prompt = "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 9)))
        found = pack("host.text").mentions(prompt, TOKENS)
        try:
            read = read_by_encoder(carrying, prompt)
        except IndexError:  # core's own answer to `embedding:` without a name
            with pytest.raises(IndexError):
                clip.tokenize(prompt)
            continue
        assert read == set(found), repr(prompt)
        named, silent = named + bool(found), silent + (not found)
    assert named > 200 and silent > 60


def test_a_part_of_a_word_is_no_mention(carrying):
    for prompt in ("a photo of basks", "zorbonian", "embedding:sks dog", "SKS", "sks_2", "zorbo1"):
        assert pack("host.text").mentions(prompt, TOKENS) == [] and read_by_encoder(carrying, prompt) == set(), prompt


def make(token, **words):
    return pack("training.data.concept").make_concept([torch.rand(1, 32, 32, 3)] * 2, token, "dog", **words)


def test_a_caption_with_the_token_inside_of_a_word_gets_the_instance_prompt():
    concept = make("zorbo", captions="a zorbonian dog\na zorbo, asleep")
    assert concept.prompts == ("a photo of a zorbo dog, a zorbonian dog", "a zorbo, asleep")
    with pytest.raises(ValueError, match="does not name the token"):
        make("sks", instance_prompt="a photo of basks")
    assert make("do", class_prompt="a photo of a {class}").class_prompt == "a photo of a dog", "which does not name 'do'"
    with pytest.raises(ValueError, match="names the token 'sks'"):
        make("sks", class_prompt="a photo of a sks, a {class}")


def test_training_a_token_that_no_caption_names_is_refused():
    """One concept's captions may name another one's token that contains its own."""
    clip, tokens = text_models.sd15(), pack("training.adapters.tokens")
    concepts = [make("<v1>", instance_prompt="a photo of my{token}"), make("my<v1>")]
    tokens.check_tokens(clip, concepts[:1])
    with pytest.raises(ValueError, match="None of the captions names the token '<v1>', so nothing would be learned"):
        tokens.check_tokens(clip, concepts)


def test_a_prompt_that_names_no_token_is_refused_by_tea():
    clip, text = text_models.sd15(), pack("host.text")
    carrying = text.carry_tokens(clip, [pack("formats.token").LearnedToken("sks", "dog", {"clip_l": torch.randn(1, 768)})])
    for prompt in ("a dog basks in the sun", "sksy"):
        with pytest.raises(ValueError, match="names no token"):
            pack("embedding.prompt").encode_concept(carrying, prompt)
