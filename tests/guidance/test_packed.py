"""Case 57. Weights that only their own loader can read (GGUF): guidance needs none of them, or refuses before the run."""

import pytest
from kindred_testing import guidance_models as g
from kindred_testing.packed import packed

OMEGA = 0.3


@pytest.fixture(scope="module")
def models(pair):
    return packed(pair.base)


def draw(pair, model):
    return g.sample(model, pair.positive, pair.negative, steps=2)


@pytest.mark.parametrize("kind", ["lora", "lokr", "diff"])
def test_what_adds_to_a_packed_weight_is_exact(pair, models, kind):
    """LoRAs, and K/V differences: the difference is at hand without the weight."""
    model, plain = models
    state = g.lora(plain, kind=kind, only="attn2.to_" if kind == "diff" else "attn")
    tuned, plainly = g.with_lora(model, state, 0.8), g.with_lora(plain, state, 0.8)
    truth = draw(pair, g.brute_force(plainly, plain, OMEGA))
    assert g.error(draw(pair, tuned), draw(pair, plainly)) < 1e-5
    assert g.error(draw(pair, g.personalize(tuned, model, OMEGA)), truth) < 1e-5
    assert g.error(draw(pair, plainly), truth) > 1e-3


@pytest.mark.parametrize("kind", ["dora", "oft"])
def test_what_multiplies_a_packed_weight_is_refused(models, kind):
    model, plain = models
    tuned = g.with_lora(model, g.lora(plain, kind=kind, only="attn"), 0.8)
    with pytest.raises(ValueError, match="packed form") as caught:
        g.personalize(tuned, model, OMEGA)
    assert "\n" not in str(caught.value)


def test_a_dora_that_comes_later_is_refused_before_the_first_forward(pair, models, forwards):
    model, plain = models
    tuned = g.personalize(g.with_lora(model, g.lora(plain, only="attn"), 0.8), model, OMEGA)
    with pytest.raises(ValueError, match="packed form"):
        draw(pair, g.with_lora(tuned, g.lora(plain, kind="dora", only="attn", seed=9), 0.5))
    assert not forwards


def test_two_packed_checkpoints(pair, models):
    """Two files differ: refused. One file twice, and a LoRA: exact."""
    model, plain = models
    with pytest.raises(ValueError, match="two checkpoints"):
        g.personalize(packed(g.base_model(seed=1)[0])[0], model, OMEGA)
    with pytest.raises(ValueError, match="two checkpoints"):
        g.personalize(g.base_model(seed=1)[0], model, OMEGA)
    again = packed(pair.base)[0]
    state = g.lora(plain, only="attn")
    truth = draw(pair, g.brute_force(g.with_lora(plain, state, 0.8), plain, OMEGA))
    assert g.error(draw(pair, g.personalize(g.with_lora(model, state, 0.8), again, OMEGA)), truth) < 1e-5
