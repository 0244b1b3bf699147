"""A concept on its token's rows under Personalization Guidance: theta_w has the share omega of its differences, on the weak rows of a batch."""

import logging

import pytest
import torch
from kindred_testing import pack
from kindred_testing import rows as r
from kindred_testing.guidance_models import comfy

OMEGA, CFG = 0.3, 3.0
PROMPT, NAMING = "a photo of a <v1> dog on the beach", "a blurry <v1> dog"


def guider(model, base, positive, negative, mode="personalization", scale=1.0, third=None):
    schedule = pack("guidance.schedule").Schedule(OMEGA)
    return pack("guidance.guider").make_guider(model, base, positive, negative, CFG, schedule, mode, third, scale)


def predictions(base, *wanted):
    """A guider on the base model whose predictions are made one by one, each with its own masked projections: (sum of) share * D(conditions)."""
    samplers = comfy("comfy.samplers")

    class ByHand(samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            total = torch.zeros_like(x)
            for index, (_, weight, named) in enumerate(wanted):
                with r.BruteForce(base[0], *named):
                    total = total + weight * samplers.calc_cond_batch(self.inner_model, [self.conds[str(index)]], x, timestep, model_options)[0]
            return total

    made = ByHand(base[0])
    made.inner_set_conds({str(index): conditions for index, (conditions, _, _) in enumerate(wanted)})
    return made


def test_a_null_prompt_without_the_token_is_plain_cfg(base, one):
    """Whatever omega: the base predicts it already."""
    model, clip = r.loaded(base, one)
    positive, negative = r.encode(clip, PROMPT), r.encode(base[1], "")
    got = r.sample(model, guider=guider(model, base[0], positive, negative))
    r.assert_close(got, r.sample(model, positive, negative, cfg=CFG), r.sample(base[0], positive, negative, cfg=CFG))


def test_a_negative_prompt_with_the_token(base, one):
    model, clip = r.loaded(base, one)
    positive, negative = r.encode(clip, PROMPT), r.encode(clip, NAMING)
    got = r.sample(model, guider=guider(model, base[0], positive, negative))
    strong, weak = [r.named(positive, [5, 6], one)], [r.named(negative, [3, 4], one, OMEGA)]
    wanted = r.sample(base[0], guider=predictions(base, (positive, CFG, strong), (negative, 1 - CFG, weak)))
    r.assert_close(got, wanted, r.sample(model, positive, negative, cfg=CFG))


def test_autoguidance_weakens_the_positive_prompt(base, one):
    model, clip = r.loaded(base, one)
    positive, negative, scale = r.encode(clip, PROMPT), r.encode(clip, NAMING), 0.7
    got = r.sample(model, guider=guider(model, base[0], positive, negative, "autoguidance", scale))
    own, minus = [r.named(positive, [5, 6], one)], [r.named(negative, [3, 4], one)]
    weak = [r.named(positive, [5, 6], one, OMEGA)]
    wanted = r.sample(base[0], guider=predictions(base, (positive, CFG + scale, own), (negative, 1 - CFG, minus), (positive, -scale, weak)))
    r.assert_close(got, wanted, r.sample(model, positive, negative, cfg=CFG))


def test_subject_agnostic_has_the_class_prompt_of_the_base(base, one):
    model, clip = r.loaded(base, one)
    positive, negative, third, scale = r.encode(clip, PROMPT), r.encode(clip, ""), r.encode(clip, "a photo of a dog on the beach"), 0.7
    got = r.sample(model, guider=guider(model, base[0], positive, negative, "CFG + subject-agnostic", scale, third))
    wanted = r.sample(base[0], guider=predictions(base, (positive, CFG - scale, [r.named(positive, [5, 6], one)]), (negative, 1 - CFG, []), (third, scale, [])))
    r.assert_close(got, wanted, r.sample(model, positive, negative, cfg=CFG))


def test_with_a_lora_beside_it(base, one):
    """The LoRA is interpolated on every row of the weak side, the concept on its token's rows."""
    other = r.concept(base, seed=3, size=0.02)
    both, clip = r.loaded((pack("host.lora").apply_lora(base[0], None, dict(other.lora))[0], base[1]), one)
    share = pack("host.lora").apply_lora(base[0], None, dict(other.lora), OMEGA)[0]
    full = pack("host.lora").apply_lora(base[0], None, dict(other.lora), 1.0)[0]
    positive, negative = r.encode(clip, PROMPT), r.encode(clip, NAMING)
    got = r.sample(both, guider=guider(both, base[0], positive, negative), steps=1)
    # one Euler step is affine in the prediction
    with r.BruteForce(full, r.named(positive, [5, 6], one)):
        strong = r.sample(full, positive, negative, cfg=1.0, steps=1)
    with r.BruteForce(share, r.named(negative, [3, 4], one, OMEGA)):
        weak = r.sample(share, negative, negative, cfg=1.0, steps=1)
    r.assert_close(got, weak + CFG * (strong - weak), r.sample(both, positive, negative, cfg=CFG, steps=1))


def test_the_same_concept_on_both_inputs_is_not_weakened(base, one):
    other = r.concept(base, seed=3, size=0.02)
    only, clip = r.loaded(base, one)
    both, _ = pack("host.lora").apply_lora(only, None, dict(other.lora))
    positive, negative = r.encode(clip, PROMPT), r.encode(clip, NAMING)
    got = r.sample(both, guider=guider(both, only, positive, negative), steps=1)
    share = pack("host.lora").apply_lora(only, None, dict(other.lora), OMEGA)[0]
    strong = r.sample(both, positive, negative, cfg=1.0, steps=1)
    weak = r.sample(share, negative, negative, cfg=1.0, steps=1)
    r.assert_close(got, weak + CFG * (strong - weak), r.sample(both, positive, negative, cfg=CFG, steps=1))


def test_swapped_inputs_are_named(base, one):
    model, _ = r.loaded(base, one)
    with pytest.raises(ValueError, match="`base_model` carries a concept that `model` lacks"):
        pack("guidance.guider").personalize(base[0], model, pack("guidance.schedule").Schedule(OMEGA))


def test_both_sides_share_a_batch_and_the_log_says_what_is_weak(base, one, caplog, monkeypatch):
    model, clip = r.loaded(base, one)
    kind, sizes = comfy("comfy.model_base").BaseModel, []
    below = kind._apply_model
    monkeypatch.setattr(kind, "_apply_model", lambda self, x, *args, **kwargs: (sizes.append(len(x)), below(self, x, *args, **kwargs))[1])
    caplog.set_level(logging.INFO)
    r.sample(model, guider=guider(model, base[0], r.encode(clip, PROMPT), r.encode(clip, NAMING)), steps=3)
    assert sizes == [2, 2, 2]
    assert "the concept's differences scaled on its token's rows, in one batched forward a step" in caplog.text


def test_an_omega_that_moves_over_the_steps(base, one):
    """Nothing that a layer keeps of a batch outlives the weights it was made with: step by step against runs of one constant omega."""
    other = r.concept(base, seed=3, size=0.02)
    only, clip = r.loaded(base, one)
    both, _ = pack("host.lora").apply_lora(only, None, dict(other.lora))
    positive, negative = r.encode(clip, PROMPT), r.encode(clip, NAMING)
    make, schedule = pack("guidance.guider").make_guider, pack("guidance.schedule").Schedule
    for weak in (base[0], only):
        seen = {}

        def keep(args, seen=seen):
            seen[float(args["sigma"].flatten()[0])] = args["uncond_denoised"].clone(), args["input"].clone()
            return args["uncond"] + CFG * (args["cond"] - args["uncond"])

        watched = both.clone()
        watched.set_model_sampler_cfg_function(keep)
        plan = schedule(0.0, omega_end=1.0, curve="linear")
        r.sample(watched, guider=make(watched, weak, positive, negative, CFG, plan), steps=4)
        assert len(seen) == 4
        sampling = base[0].get_model_object("model_sampling")
        for sigma, (denoised, noisy) in seen.items():
            omega = plan.at(pack("guidance.schedule").percent_of(sigma, sampling.percent_to_sigma))
            share = pack("host.lora").apply_lora(weak, None, dict(other.lora), omega)[0]
            if weak is base[0]:
                rows = r.BruteForce(share, r.named(negative, [3, 4], one, omega))
            else:
                rows = r.BruteForce(share)
            with rows:
                wanted = _denoised(share, negative, noisy, sigma)
            assert (denoised - wanted).abs().max() < 1e-4 * wanted.abs().max(), (sigma, omega)


def _denoised(model, conditioning, noisy, sigma):
    """What `model` denoises `noisy` to, inside a run of its own."""
    samplers, seen = comfy("comfy.samplers"), []

    class Once(samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            seen.append(super().predict_noise(noisy, torch.full((1,), sigma), model_options or {}, seed))
            return seen[-1]

    guider = Once(model)
    guider.set_conds(conditioning, conditioning)
    guider.set_cfg(1.0)
    r.sample(model, guider=guider, steps=1)
    return seen[0]
