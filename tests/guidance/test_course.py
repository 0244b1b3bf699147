"""omega over time, the guidance interval, and the modes of the guider."""

import math

import pytest
import torch
from kindred_testing import guidance_models as g
from kindred_testing import host_version, pack


def Schedule(*args, **kwargs):
    return pack("guidance.schedule").Schedule(*args, **kwargs)


def personalize(model, base, schedule):
    return pack("guidance.guider").personalize(model, base, schedule)


def in_parts(pair, model_of_step, cfg_of_step, steps, tuned=None):
    """One run of Euler, each step on a model of its own: noise in at the first, kept until the last."""
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    for i in range(steps):
        out = g.sample(
            model_of_step(i),
            pair.positive,
            pair.negative,
            steps=steps,
            cfg=cfg_of_step(i),
            latent=latent,
            start_step=i,
            last_step=i + 1,
            disable_noise=i > 0,
            force_full_denoise=False,
        )
        latent = {"samples": out}
    return latent["samples"]


def percents(pair, steps):
    """The percent of each step, from the model's timesteps: 999 is 0."""
    sampling = pair.base.get_model_object("model_sampling")
    sigmas = g.comfy("comfy.samplers").calculate_sigmas(sampling, "normal", steps)
    return [1 - float(sampling.timestep(sigma)) / 999 for sigma in sigmas[:-1]]


@pytest.mark.parametrize("kind", ["dora", "diff"])
@pytest.mark.parametrize("curve", ["linear", "cosine", "host"])
def test_omega_over_time(pair, kind, curve):
    steps = 3
    if curve == "host" and host_version() < (0, 24):
        with pytest.raises(ValueError, match="This ComfyUI has no curves yet"):
            pack("host.sampling").curve_function([(0, 0), (1, 1)])
        return
    shape = {"linear": lambda x: x, "cosine": lambda x: (1 - math.cos(math.pi * x)) / 2, "host": lambda x: x * x}[curve]
    given = (
        pack("host.sampling").curve_function({"points": [[i / 20, (i / 20) ** 2] for i in range(21)], "interpolation": "linear"}) if curve == "host" else curve
    )
    tuned = g.with_lora(pair.base, g.lora(pair.base, kind=kind), 0.8)
    omegas = [0.1 + 0.7 * shape(x) for x in percents(pair, steps)]
    expected = in_parts(pair, lambda i: g.brute_force(tuned, pair.base, omegas[i]), lambda i: 7.5, steps)
    ours = g.sample(personalize(tuned, pair.base, Schedule(0.1, 0.8, given)), pair.positive, pair.negative, steps=steps)
    assert g.error(ours, expected) < (2e-3 if curve == "host" else 5e-4)  # percents() rounds to whole timesteps; the drawn curve is made of straight pieces


def test_omega_over_time_on_two_checkpoints(pair):
    """One module after all: at a varying omega the second model's weights would have to be merged in each step."""
    other, _ = g.base_model(seed=1)
    expected = in_parts(pair, lambda i: g.brute_force(other, pair.base, percents(pair, 3)[i]), lambda i: 7.5, 3)
    assert (
        g.error(g.sample(personalize(other, pair.base, Schedule(0.0, 1.0, "linear")), pair.positive, pair.negative, steps=3), expected) < 1e-3
    )  # percents() rounds to whole timesteps


@pytest.mark.parametrize("kind", ["lora", "two checkpoints"])
def test_guidance_interval(pair, kind, forwards):
    """Outside of it the positive forward alone: fewer rows, and the tuned model's own prediction."""
    tuned = pair.tuned if kind == "lora" else g.base_model(seed=1)[0]
    steps = 5
    inside = [0.2 <= x <= 0.7 for x in percents(pair, steps)]
    truth = g.brute_force(tuned, pair.base, 0.3)
    expected = in_parts(pair, lambda i: truth, lambda i: 7.5 if inside[i] else 1.0, steps)
    ours = personalize(tuned, pair.base, Schedule(0.3, start=0.2, end=0.7))
    del forwards[:]
    assert g.error(g.sample(ours, pair.positive, pair.negative, steps=steps), expected) < 1e-4
    assert 0 < sum(inside) < steps
    assert sum(forwards) == steps + sum(inside)


def test_interval_with_omega_one_is_cfg_in_an_interval(pair):
    inside = [0.2 <= x <= 0.7 for x in percents(pair, 5)]
    expected = in_parts(pair, lambda i: pair.tuned, lambda i: 7.5 if inside[i] else 1.0, 5)
    assert g.error(g.sample(personalize(pair.tuned, pair.base, Schedule(1.0, start=0.2, end=0.7)), pair.positive, pair.negative, steps=5), expected) < 1e-5


# ---- modes -----------------------------------------------------------------------------------------------------------------------


def draw(guider, steps=1, sampler="euler"):
    samplers, sample = g.comfy("comfy.samplers"), g.comfy("comfy.sample")
    with torch.inference_mode():
        noise = sample.prepare_noise(torch.zeros(1, 4, 8, 8), 5)
        sigmas = samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", steps)
        return guider.sample(noise, torch.zeros(1, 4, 8, 8), samplers.sampler_object(sampler), sigmas, seed=5)


def make(pair, mode, omega=0.3, cfg=7.5, tuned=None, **more):
    with torch.inference_mode():
        return pack("guidance.guider").make_guider(tuned or pair.tuned, pair.base, pair.positive, pair.negative, cfg, Schedule(omega), mode, **more)


def prediction(model, conditioning):
    """D(x | c): what one Euler step from pure noise to zero gives without guidance."""
    return g.sample(model, conditioning, conditioning, cfg=1.0, steps=1)


@pytest.fixture(scope="module")
def parts(pair):
    agnostic = g.encode(pair.clip, "a photo of something")
    weak = g.interpolated(pair.tuned, pair.base, 0.3)
    return {
        "c": prediction(pair.tuned, pair.positive),
        "null": prediction(pair.tuned, pair.negative),
        "weak c": prediction(weak, pair.positive),
        "weak null": prediction(weak, pair.negative),
        "agnostic": prediction(pair.tuned, agnostic),
        "agnostic prompt": agnostic,
    }


def test_mode_personalization(pair, parts):
    expected = parts["weak null"] + 7.5 * (parts["c"] - parts["weak null"])
    assert g.error(draw(make(pair, "personalization")), expected) < 1e-5


def test_mode_autoguidance(pair, parts):
    expected = parts["null"] + 7.5 * (parts["c"] - parts["null"]) + 1.5 * (parts["c"] - parts["weak c"])
    assert g.error(draw(make(pair, "autoguidance", scale=1.5)), expected) < 1e-5


def test_mode_autoguidance_alone_is_equation_six(pair, parts, forwards):
    """cfg 1: eps_w(c) + lambda (eps'(c) - eps_w(c)) with lambda = 1 + scale, at two rows a step."""
    guider = make(pair, "autoguidance", cfg=1.0, scale=1.0)
    del forwards[:]
    assert g.error(draw(guider), parts["weak c"] + 2.0 * (parts["c"] - parts["weak c"])) < 1e-5
    assert forwards == [2]


def test_mode_autoguidance_of_two_checkpoints(pair):
    other, _ = g.base_model(seed=1)
    c, null, weak = prediction(other, pair.positive), prediction(other, pair.negative), prediction(pair.base, pair.positive)
    assert g.error(draw(make(pair, "autoguidance", 0.0, tuned=other)), null + 7.5 * (c - null) + (c - weak)) < 1e-5


@pytest.mark.parametrize("until, weight, share", [(0.9, 0.0, 1.0), (1.0, 0.0, 0.0), (1.0, -0.4, 0.4), (1.0, -1.0, 1.0), (0.0, 0.0, 1.0)])
def test_mode_subject_agnostic(pair, parts, forwards, until, weight, share):
    """Chan et al., CVPR 2024: CFG over (1 + w) D(c) - w D(c0), with w = -1 while t > T, then w = r. One step, at t = 1."""
    strong = (1 - share) * parts["c"] + share * parts["agnostic"]
    guider = make(pair, "subject-agnostic", subject_agnostic=parts["agnostic prompt"], agnostic_until=until, agnostic_weight=weight)
    del forwards[:]
    assert g.error(draw(guider), parts["null"] + 7.5 * (strong - parts["null"])) < 1e-5
    assert forwards == [2 if share in (0, 1) else 3]


def test_mode_subject_agnostic_is_early(pair, parts):
    """As published: the prompt without the subject for the first tenth of the noise, then the prompt itself, at the cost of CFG."""
    steps, times = 12, [1 - percent for percent in percents(pair, 12)]
    latent, early = {"samples": torch.zeros(1, 4, 8, 8)}, [time > 0.9 for time in times]
    assert early == sorted(early, reverse=True) and any(early) and not all(early)
    for i in range(steps):
        part = {"start_step": i, "last_step": i + 1, "disable_noise": i > 0, "force_full_denoise": False}
        positive = parts["agnostic prompt"] if early[i] else pair.positive
        latent = {"samples": g.sample(pair.tuned, positive, pair.negative, steps=steps, latent=latent, **part)}
    assert g.error(draw(make(pair, "subject-agnostic", subject_agnostic=parts["agnostic prompt"]), steps), latent["samples"]) < 1e-5


def test_mode_cfg_and_subject_agnostic(pair, parts):
    """The baseline of Steering Guidance: toward the prompt without the subject, in every step."""
    expected = parts["null"] + 7.5 * (parts["c"] - parts["null"]) + 0.8 * (parts["agnostic"] - parts["c"])
    guider = make(pair, "CFG + subject-agnostic", scale=0.8, subject_agnostic=parts["agnostic prompt"])
    assert g.error(draw(guider), expected) < 1e-5


def test_modes_take_their_predictions_in_one_forward(pair, parts, forwards):
    """As many as the register says, which the tooltip tells."""
    for mode, about in pack("guidance.modes").MODES.items():
        guider = make(pair, mode, subject_agnostic=parts["agnostic prompt"])
        del forwards[:]
        draw(guider, steps=2)
        assert forwards == [about.predictions] * 2


def test_cfg_plus_plus_in_the_guider(pair):
    """CFG++ samplers re-noise with the unconditional prediction: here the weak model's."""
    truth = g.sample(g.brute_force(pair.tuned, pair.base, 0.3), pair.positive, pair.negative, cfg=0.4, sampler="euler_cfg_pp", steps=3)
    assert g.error(draw(make(pair, "personalization", cfg=0.4), 3, "euler_cfg_pp"), truth) < 1e-5


def test_core_guiders_on_the_patched_model(pair):
    """Dual CFG and Perp-Neg of core, on the model patch: the side they call negative is the weak one (Perp-Neg: its null prompt, too)."""
    model = personalize(pair.tuned, pair.base, Schedule(0.3))
    weak, middle = g.interpolated(pair.tuned, pair.base, 0.3), g.encode(pair.clip, "a photo")
    c, m, null = prediction(pair.tuned, pair.positive), prediction(pair.tuned, middle), prediction(weak, pair.negative)
    dual = g.node(
        "DualCFGGuider", model=model, cond1=pair.positive, cond2=middle, negative=pair.negative, cfg_conds=3.0, cfg_cond2_negative=1.5, style="regular"
    )[0]
    assert g.error(draw(dual), null + 1.5 * (m - null) + 3.0 * (c - m)) < 1e-5
    perp = g.node("PerpNegGuider", model=model, positive=pair.positive, negative=middle, empty_conditioning=pair.negative, cfg=7.5, neg_scale=0.0)[0]
    assert g.error(draw(perp), null + 7.5 * (c - null)) < 1e-4


def test_a_guider_without_a_negative_is_told(pair, caplog):
    basic = g.node("BasicGuider", model=personalize(pair.tuned, pair.base, Schedule(0.3)), conditioning=pair.positive)[0]
    draw(basic)
    assert "no negative side" in caplog.text
