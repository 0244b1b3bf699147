"""The null prompt of a tuned text encoder, against core's LoRA loader with strength_clip = omega."""

import pytest
import torch
from kindred_testing import guidance_models as g
from kindred_testing import pack, text_models

STRENGTH, OMEGA = 0.8, 0.3


@pytest.fixture(scope="module")
def clips(pair):
    """(tuned, at): a LoRA on the text encoder, and core's own loader of it at any strength."""
    state = {}
    generator = torch.Generator().manual_seed(3)
    for name, weight in pair.clip.cond_stage_model.state_dict().items():
        if name.endswith((".q_proj.weight", ".v_proj.weight", ".fc1.weight")):
            key = "lora_te_text_model_" + name.partition("text_model.")[2].removesuffix(".weight").replace(".", "_")
            up, down = torch.randn(weight.shape[0], 4, generator=generator), torch.randn(4, weight.shape[1], generator=generator)
            state |= {f"{key}.lora_up.weight": up * 0.5 * float(weight.norm() / (up @ down).norm()), f"{key}.lora_down.weight": down}
            state[f"{key}.alpha"] = torch.tensor(4.0)
    assert state

    def at(omega):
        with torch.inference_mode():
            return g.comfy("comfy.sd").load_lora_for_models(None, pair.clip, state, 0.0, STRENGTH * omega)[1]

    return at(1.0), at


def negative(tuned, base, text=""):
    with torch.inference_mode():
        return pack("guidance.null_prompt").encode(tuned, base, text)


@pytest.mark.parametrize("omega", [0.0, OMEGA, 1.0])
@pytest.mark.parametrize("text", ["", "blurry"])
def test_any_omega_has_the_right_one(pair, clips, omega, text):
    tuned, at = clips
    guided = g.personalize(pair.tuned, pair.base, omega)
    own, reference = negative(tuned, pair.clip, text), g.encode(at(omega), text)
    got = g.sample(guided, pair.positive, own, steps=2)
    assert g.error(got, g.sample(guided, pair.positive, reference, steps=2)) < 1e-5
    if omega < 1:
        assert g.error(g.sample(guided, pair.positive, g.encode(tuned, text), steps=2), got) > 1e-3, "the text encoder makes no difference"


def test_without_guidance_it_is_the_tuned_encoders(pair, clips):
    """Omega 1 is the tuned model's own CFG."""
    own, reference = negative(clips[0], pair.clip), g.encode(clips[0], "")
    assert torch.equal(own[0][0], reference[0][0])
    assert torch.equal(own[0][1]["pooled_output"], reference[0][1]["pooled_output"])
    assert torch.equal(g.sample(pair.tuned, pair.positive, own, steps=2), g.sample(pair.tuned, pair.positive, reference, steps=2))


def test_an_omega_that_moves(pair, clips):
    """Each step has the prompt of its own omega."""
    steps, (tuned, at) = 4, clips
    course = {"omega_end": 0.9, "curve": "linear"}
    got = g.sample(g.personalize(pair.tuned, pair.base, 0.1, **course), pair.positive, negative(tuned, pair.clip), steps=steps)
    schedule = pack("guidance.schedule").Schedule(0.1, **course)
    sampling = pair.base.get_model_object("model_sampling")
    latent = {"samples": torch.zeros(1, 4, 8, 8)}
    for i, sigma in enumerate(g.comfy("comfy.samplers").calculate_sigmas(sampling, "normal", steps)[:-1]):
        omega = schedule.at(1 - float(sampling.timestep(sigma)) / 999)
        part = {"start_step": i, "last_step": i + 1, "disable_noise": i > 0, "force_full_denoise": False}
        null = g.encode(at(omega), "")
        latent = {"samples": g.sample(g.personalize(pair.tuned, pair.base, omega), pair.positive, null, steps=steps, latent=latent, **part)}
    assert g.error(got, latent["samples"]) < 1e-4


def test_two_loaded_text_encoders(pair):
    """A whole fine-tune: the weights in between, as core's CLIP Merge Simple makes them."""
    _, other = g.base_model(seed=1)
    merged = g.node("CLIPMergeSimple", clip1=other, clip2=pair.clip, ratio=OMEGA)[0]
    guided = g.personalize(pair.tuned, pair.base, OMEGA)
    got = g.sample(guided, pair.positive, negative(other, pair.clip), steps=2)
    assert g.error(got, g.sample(guided, pair.positive, g.encode(merged, ""), steps=2)) < 1e-5


def test_autoguidance_keeps_the_tuned_encoders(pair, clips):
    """Its CFG is the tuned model's: only the third prediction is weak, and that one has the positive prompt."""
    pictures = []
    for null in (negative(clips[0], pair.clip), g.encode(clips[0], "")):
        with torch.inference_mode():
            guider = pack("guidance.guider").make_guider(
                pair.tuned, pair.base, pair.positive, null, 7.5, pack("guidance.schedule").Schedule(OMEGA), "autoguidance"
            )
            sigmas = g.comfy("comfy.samplers").calculate_sigmas(pair.base.get_model_object("model_sampling"), "normal", 2)
            noise = g.comfy("comfy.sample").prepare_noise(torch.zeros(1, 4, 8, 8), 5)
            pictures.append(guider.sample(noise, torch.zeros(1, 4, 8, 8), g.comfy("comfy.samplers").sampler_object("euler"), sigmas, seed=5))
    assert torch.equal(*pictures)


def test_one_that_another_node_changed_stays_and_is_named(pair, clips, caplog):
    changed = g.node("ConditioningConcat", conditioning_to=negative(clips[0], pair.clip), conditioning_from=g.encode(pair.clip, "ugly"))[0]
    guided, plain = g.personalize(pair.tuned, pair.base, OMEGA), [[features, {}] for features, _ in changed]
    assert torch.equal(g.sample(guided, pair.positive, changed, steps=1), g.sample(guided, pair.positive, plain, steps=1))
    assert "changed after it was encoded" in caplog.text


def test_an_untuned_text_encoder_is_an_ordinary_prompt(pair):
    own = negative(pair.clip.clone(), pair.clip)
    assert pack("guidance.null_prompt").KEY not in own[0][1]
    assert torch.equal(own[0][0], g.encode(pair.clip, "")[0][0])


def test_text_encoders_of_two_families(pair):
    with pytest.raises(ValueError, match="two families"):
        negative(pair.clip, text_models.sdxl())
