"""What does not fit is told in one sentence; the nodes' faces are core's own."""

import logging
import math

import pytest
import torch
from kindred_testing import guidance_models as g
from kindred_testing import pack


def personalize(model, base, omega=0.3, **course):
    return pack("guidance.guider").personalize(model, base, pack("guidance.schedule").Schedule(omega, **course))


def refused(match, model, base, **course):
    with pytest.raises(ValueError, match=match) as caught:
        personalize(model, base, **course)
    assert "\n" not in str(caught.value)


def test_nothing_differs(pair):
    refused("nothing to guide away from", pair.base, pair.base)
    refused("nothing to guide away from", pair.tuned, pair.tuned)
    refused("two copies of one checkpoint", g.base_model()[0], pair.base)


def test_swapped_inputs(pair):
    refused("probably swapped", pair.base, pair.tuned)
    state = g.lora(pair.base)
    refused("probably swapped", g.with_lora(pair.base, state, 0.3), g.with_lora(pair.base, state, 0.9))


def test_another_architecture(pair):
    """A real other model of the host: SD 2's layout, tiny."""
    state = {key.removeprefix("diffusion_model."): value for key, value in g.merged_state(pair.base).items() if key.startswith("diffusion_model.")}
    wide = {**state, **{key: torch.zeros(value.shape[0], 1024) for key, value in state.items() if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}}
    wide |= {key: value[:, :, 0, 0] for key, value in state.items() if key.endswith(("proj_in.weight", "proj_out.weight"))}
    with torch.inference_mode():
        other = g.comfy("comfy.sd").load_diffusion_model_state_dict(wide, model_options={"dtype": torch.float32})
    family = type(other.model.model_config).__name__
    assert family == "SD20"
    refused("`model` is SD15 and `base_model` is SD20", pair.tuned, other)


def test_bypassed_lora(pair):
    bypassed = pair.base.clone()
    with torch.inference_mode():
        bypassed, _ = g.comfy("comfy.sd").load_bypass_lora_for_models(pair.base, None, g.lora(pair.base), 1.0, 0)
    refused("bypass mode", bypassed, pair.base)


@pytest.mark.parametrize("omega", [-0.1, 1.1, math.nan, math.inf, "many", None])
def test_omega_out_of_range(pair, omega):
    """Also what comes through a link, which the server does not check."""
    refused("omega", pair.tuned, pair.base, omega=omega)
    refused("omega_end", pair.tuned, pair.base, omega=0.5, omega_end=omega if omega is not None else math.nan, curve="linear")


def test_interval_and_curve_out_of_range(pair):
    refused("start_percent", pair.tuned, pair.base, start=math.nan)
    refused("is empty", pair.tuned, pair.base, start=0.6, end=0.4)
    refused("omega_curve", pair.tuned, pair.base, curve="wild")


def test_guider_refusals(pair):
    make, schedule = pack("guidance.guider").make_guider, pack("guidance.schedule").Schedule(0.3)
    for match, changes in {
        "encodes nothing by itself": {"negative": None},
        "`cfg`": {"cfg": math.nan},
        "`mode`": {"mode": "magic"},
        "without the subject's token": {"mode": "subject-agnostic"},
        "`agnostic_until`": {"mode": "subject-agnostic", "subject_agnostic": pair.negative, "agnostic_until": math.nan},
        "`agnostic_weight`": {"mode": "subject-agnostic", "subject_agnostic": pair.negative, "agnostic_weight": 0.5},
        "`scale`": {"mode": "autoguidance", "scale": math.inf},
    }.items():
        arguments = {
            "model": pair.tuned,
            "base_model": pair.base,
            "positive": pair.positive,
            "negative": pair.negative,
            "cfg": 7.5,
            "schedule": schedule,
            **changes,
        }
        with pytest.raises(ValueError, match=match):
            make(**arguments)


@pytest.mark.parametrize(
    "kind, match", [("lora", "layers corrected by the adapter"), ("diff", "with a second weight"), ("checkpoint", "a second model beside the tuned one")]
)
def test_the_path_is_told_once_with_its_price(pair, caplog, kind, match):
    tuned = g.base_model(seed=1)[0] if kind == "checkpoint" else g.with_lora(pair.base, g.lora(pair.base, kind=kind))
    guided = personalize(tuned, pair.base)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            g.sample(guided, pair.positive, pair.negative, steps=1)
    told = [record.getMessage() for record in caplog.records if "Personalization Guidance" in record.getMessage()]
    assert len(told) == 1
    assert match in told[0]
    assert "MB" in told[0]
    assert "omega 0.3" in told[0]


def schema(name):
    node = g.comfy("nodes").NODE_CLASS_MAPPINGS[name]
    types = node.INPUT_TYPES()
    return node, {**types["required"], **types.get("optional", {})}


@pytest.mark.parametrize("ours, core", [("KindredKSampler", "KSampler"), ("KindredKSamplerAdvanced", "KSamplerAdvanced")])
def test_sampler_nodes_have_exactly_cores_inputs_besides_ours(ours, core):
    _, mine = schema(ours)
    _, theirs = schema(core)
    assert list(mine) == ["model", "base_model", "omega", *[name for name in theirs if name != "model"]]
    for name, (kind, *options) in theirs.items():
        if name == "model":
            continue
        options = options[0] if options else {}
        mine_kind, mine_options = mine[name]
        assert mine_kind in (kind, "COMBO")
        if isinstance(kind, list):
            assert mine_options["options"] == kind
        for key, value in options.items():
            assert mine_options.get(key) == value, (name, key)


def test_sampler_nodes_draw_what_core_draws_on_the_patched_model(pair):
    """Every input reaches core's function: noise, start, end and leftover of the advanced one, denoise of the plain one."""
    patched, models = g.personalize(pair.tuned, pair.base, 0.3), {"model": pair.tuned, "base_model": pair.base, "omega": 0.3}
    common = {"steps": 4, "cfg": 6.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "positive": pair.positive, "negative": pair.negative}
    latent = {"latent_image": {"samples": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), "batch_index": [3, 5]}}
    plain = {**common, **latent, "seed": 4, "denoise": 0.7}
    assert torch.equal(g.node("KindredKSampler", **models, **plain)[0]["samples"], g.node("KSampler", model=patched, **plain)[0]["samples"])
    for noise, leftover in (("enable", "enable"), ("disable", "disable")):
        parts = {"add_noise": noise, "noise_seed": 4, "start_at_step": 1, "end_at_step": 3, "return_with_leftover_noise": leftover}
        ours = g.node("KindredKSamplerAdvanced", **models, **common, **latent, **parts)[0]["samples"]
        assert torch.equal(ours, g.node("KSamplerAdvanced", model=patched, **common, **latent, **parts)[0]["samples"])


@pytest.mark.parametrize("name", ["KindredGuider", "KindredKSampler", "KindredKSamplerAdvanced", "KindredPersonalizationGuidance"])
def test_every_input_has_a_tooltip_and_every_node_a_page(name):
    node, inputs = schema(name)
    core = set(schema("KSampler")[1]) | set(schema("KSamplerAdvanced")[1])
    assert all(options[0].get("tooltip") for key, (_, *options) in inputs.items() if key not in core or key == "model")
    assert node.DESCRIPTION
    page = (pack().__spec__.submodule_search_locations or [None])[0]
    from pathlib import Path

    text = (Path(page) / "web" / "docs" / f"{name}.md").read_text()
    assert all(f"`{key}`" in text for key in inputs if key not in core or key == "model")
