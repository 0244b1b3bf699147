"""The weak model is exact: every kind of pair against two modules with explicitly interpolated weights."""

import pytest
import torch
from kindred_testing import guidance_families as families
from kindred_testing import guidance_models as g
from kindred_testing import host_version, pack

OMEGAS = (0.0, 0.3, 0.6)


def check(pair, tuned, base=None, omegas=(0.3,), limit=1e-5, **sampling):
    """`tuned` against brute force; plain CFG, which is returned, must be far away from it, or the test would show nothing."""
    base = base or pair.base
    plain = g.sample(tuned, pair.positive, pair.negative, **sampling)
    for omega in omegas:
        truth = g.sample(g.brute_force(tuned, base, omega), pair.positive, pair.negative, **sampling)
        ours = g.sample(g.personalize(tuned, base, omega), pair.positive, pair.negative, **sampling)
        assert g.error(ours, truth) <= limit, omega
        assert g.error(plain, truth) > 0.05, "the adapter of this test is too small to prove anything"
    return plain


KINDS = {
    "lora": {"rank": 4},
    "lora rank 128": {"rank": 128},
    "lora with convolutions": {"rank": 4, "convolutions": True},
    "k/v diff": {"kind": "diff", "only": "attn2.to_"},
    "dora": {"kind": "dora"},
    "dora with convolutions": {"kind": "dora", "convolutions": True},
    "loha": {"kind": "loha"},
    "loha rank 16": {"kind": "loha", "rank": 16},
    "loha with convolutions": {"kind": "loha", "convolutions": True},
    "lokr": {"kind": "lokr"},
    "lokr with convolutions": {"kind": "lokr", "convolutions": True},
    "oft": {"kind": "oft"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_of_every_kind(pair, kind):
    check(pair, g.with_lora(pair.base, g.lora(pair.base, **KINDS[kind]), 0.8), omegas=OMEGAS, steps=2)


@pytest.mark.parametrize("kind", ["lora rank 128", "dora rank 32", "loha rank 16", "lokr", "oft", "lora rank 32 with convolutions"])
def test_a_larger_image(pair, kind):
    """At 192 pixels most layers make their weak weight anew; at the 64 of the other tests they correct their output."""
    shape = KINDS.get(kind) or {"kind": kind[:4], "rank": 32, "convolutions": "conv" in kind}
    check(pair, g.with_lora(pair.base, g.lora(pair.base, **shape), 0.8), size=24, steps=1)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_is_no_larger_than_the_adapter(pair, kind):
    """Beside the model stands what the file holds and a vector for a bias: the whole is far below 2% of the model."""
    state = g.lora(pair.base, **KINDS[kind])
    _, kept = installed(g.with_lora(pair.base, state, 0.8), pair.base)
    size = sum(value.nbytes for value in state.values())
    assert 0 < kept <= size + 0.001 * pair.base.model_size()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora with convolutions", "k/v diff", "dora with convolutions", "loha with convolutions", "lokr with convolutions", "oft"])
def test_twenty_steps(pair, kind):
    """A whole picture, over which errors would add up; omega 1 is core's own picture of the tuned model, bit for bit."""
    tuned = g.with_lora(pair.base, g.lora(pair.base, **KINDS[kind]), 0.8)
    plain = check(pair, tuned, limit=1e-4, steps=20)
    alone = g.personalize(tuned, pair.base, 1.0)
    assert torch.equal(g.sample(alone, pair.positive, pair.negative, steps=20), plain)


@pytest.mark.hosts
def test_stacked_loras_of_different_strengths(pair):
    tuned = g.with_lora(g.with_lora(pair.base, g.lora(pair.base, seed=1), 0.7), g.lora(pair.base, seed=2, rank=8, kind="loha"), -0.4)
    check(pair, tuned)


def test_patches_that_both_sides_share(pair):
    """A style LoRA below both, in one chain and loaded twice; only the subject's LoRA is the difference."""
    style, subject = g.lora(pair.base, seed=3), g.lora(pair.base, seed=4, only="attn2")
    base = g.with_lora(pair.base, style, 0.9)
    check(pair, g.with_lora(base, subject, 0.8), base)
    again = g.with_lora(g.with_lora(pair.base, {key: value.clone() for key, value in style.items()}, 0.9), subject, 0.8)
    check(pair, again, base)
    assert len(compare(again, base)) == len(compare(g.with_lora(pair.base, subject, 0.8), pair.base))


def test_a_shared_dora_below_and_a_dora_above(pair):
    """Not additive: what lies above a DoRA depends on what lies below."""
    base = g.with_lora(pair.base, g.lora(pair.base, seed=3, kind="dora"), 0.9)
    check(pair, g.with_lora(base, g.lora(pair.base, seed=4), 0.8), base)
    above = g.lora(pair.base, seed=5, kind="dora")
    check(pair, g.with_lora(g.with_lora(pair.base, g.lora(pair.base, seed=4), 0.8), above, 0.9), g.with_lora(pair.base, above, 0.9))


def test_a_lora_upon_a_dora(pair):
    """Read back through both, in either order; strengths of the DoRA beside 1 mix the base in again."""
    dora, lora = g.lora(pair.base, seed=3, kind="dora"), g.lora(pair.base, seed=4, only="attn")
    for first, second in ((dora, lora), (lora, dora)):
        tuned = g.with_lora(g.with_lora(pair.base, first, 0.6), second, 1.3)
        check(pair, tuned)
        assert ways_of(tuned, pair.base) == {"Correction"}


def test_what_cannot_be_read_back_gets_a_second_weight(pair):
    """A DoRA that takes a channel to nothing, and one that measures the columns instead of the rows."""
    vanishing, columns = (g.lora(pair.base, seed=5, kind="dora", only="attn2.to_") for _ in range(2))
    for key in [key for key in vanishing if key.endswith(".dora_scale")]:
        vanishing[key] = vanishing[key].clone()
        vanishing[key][:3] = 0.0
        down = columns[key.replace("dora_scale", "lora_down.weight")]
        columns[key] = torch.ones(1, down.shape[1])
    for state in (vanishing, columns):
        tuned = g.with_lora(pair.base, state, 1.0)
        check(pair, tuned)
        assert ways_of(tuned, pair.base) == {"SecondWeight"}


def test_the_same_lora_at_two_strengths(pair):
    state = g.lora(pair.base, seed=6)
    check(pair, g.with_lora(pair.base, state, 1.0), g.with_lora(pair.base, state, 0.4))


def test_biases_norms_and_whole_weights(pair):
    """`diff_b`, norm weights and `set`, as LoRA extraction writes them."""
    state, generator = pair.base.model.diffusion_model.state_dict(), torch.Generator().manual_seed(8)
    adapter = {}
    for name, suffix in (("out.0", "diff"), ("out.0", "diff_b"), ("time_embed.0", "diff_b"), ("input_blocks.1.0.out_layers.3", "diff_b")):
        weight = state[f"{name}.{'bias' if suffix == 'diff_b' else 'weight'}"]
        adapter[f"diffusion_model.{name}.{suffix}"] = torch.randn(weight.shape, generator=generator) * 0.5
    tuned = g.with_lora(pair.base, adapter)
    key = "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v.weight"
    tuned.add_patches({key: ("set", (torch.randn(pair.base.model.state_dict()[key].shape, generator=generator) * 0.1,))})
    assert len(tuned.patches) == 5
    check(pair, tuned)


def test_lora_on_a_slice_of_the_outputs(pair):
    """As the fused q/k/v projections of transformers get them."""
    key, generator = "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight", torch.Generator().manual_seed(9)
    adapter = g.comfy("comfy.weight_adapter").LoRAAdapter(
        set(), (torch.randn(160, 4, generator=generator), torch.randn(4, 320, generator=generator), 4.0, None, None, None)
    )
    tuned = pair.base.clone()
    tuned.add_patches({(key, (0, 80, 160)): adapter}, 0.5)
    assert all(change.terms for change in compare(tuned, pair.base).values())
    check(pair, tuned)


def test_two_checkpoints(pair):
    """A full fine-tune beside its base, each with a module of its own."""
    other, _ = g.base_model(seed=1)
    check(pair, other, omegas=(0.0, 0.4))


@pytest.mark.skipif(host_version() < (0, 24), reason="DualModelGuider came with 0.24")
def test_omega_zero_of_two_checkpoints_is_cores_dual_model_guider(pair):
    other, _ = g.base_model(seed=1)
    custom, schema = g.comfy("comfy_extras.nodes_custom_sampler"), {"positive": pair.positive, "negative": pair.negative, "cfg": 7.5}
    with torch.inference_mode():
        core = custom.DualModelGuider.execute(model=other, model_negative=pair.base, **schema).args[0]
        ours = pack("guidance.guider").make_guider(other, pair.base, schedule=pack("guidance.schedule").Schedule(0.0), **schema)
        latents = [sample_guider(one) for one in (core, ours)]
    assert torch.equal(*latents)


def test_two_checkpoints_with_loras_on_both(pair):
    other, _ = g.base_model(seed=1)
    tuned, base = g.with_lora(other, g.lora(other, seed=11), 0.8), g.with_lora(pair.base, g.lora(pair.base, seed=12, only="attn1"), 0.5)
    check(pair, tuned, base)


def test_two_checkpoints_that_differ_in_few_weights(pair):
    """A checkpoint saved with trained K/V: only these get a second weight, and the base is not even loaded."""
    trained = g.with_lora(pair.base, g.lora(pair.base, kind="diff", only="attn2.to_"), 1.0)
    other = g.with_state(pair.base, g.merged_state(trained))
    assert sorted(compare(other, pair.base)) == sorted(trained.patches)
    check(pair, other)
    assert not pack("guidance.weak_model").WeakModel(other, pair.base, pack("guidance.schedule").Schedule(0.3)).separate


def test_one_checkpoint_loaded_twice(pair):
    """The base comes from a second loader node: the stored weights are the same, so the LoRA alone is the difference."""
    twin, _ = g.base_model()
    assert not pack("host.patcher").share_module(twin, pair.base)
    check(pair, pair.tuned, twin)


def test_instruction_editing_beside_its_base(pair):
    """InstructPix2Pix has more input channels than its base, which counts as zero there."""
    state = g.merged_state(g.base_model(seed=1)[0])
    key, generator = "diffusion_model.input_blocks.0.0.weight", torch.Generator().manual_seed(3)
    state[key] = torch.cat([state[key], torch.randn(state[key].shape, generator=generator) * 0.1], 1)
    editing = load_state(state)
    padded = dict(g.merged_state(pair.base))
    padded[key] = torch.cat([padded[key], torch.zeros_like(padded[key])], 1)
    image = {"concat_latent_image": torch.randn(1, 4, 8, 8, generator=generator)}
    positive, negative = ([[c, {**d, **image}] for c, d in one] for one in (pair.positive, pair.negative))
    for omega in (0.0, 0.4):
        truth = g.sample(g.brute_force(editing, load_state(padded), omega), positive, negative)
        assert g.error(g.sample(g.personalize(editing, pair.base, omega), positive, negative), truth) < 1e-5


@pytest.mark.hosts
def test_omega_one_is_core_bit_for_bit(pair):
    plain = g.sample(pair.tuned, pair.positive, pair.negative)
    assert torch.equal(g.sample(g.personalize(pair.tuned, pair.base, 1.0), pair.positive, pair.negative), plain)


def test_a_lora_loaded_after_the_patch_is_on_both_sides(pair):
    later = g.lora(pair.base, seed=13, size=0.3)
    for kind in ("lora", "dora"):
        tuned = g.with_lora(pair.base, g.lora(pair.base, kind=kind), 0.8)
        ours = g.sample(g.with_lora(g.personalize(tuned, pair.base, 0.3), later, 0.7), pair.positive, pair.negative)
        weak = g.with_lora(g.interpolated(tuned, pair.base, 0.3), later, 0.7)
        truth = g.brute_force(g.with_lora(tuned, later, 0.7), weak, 0.0)
        assert g.error(ours, g.sample(truth, pair.positive, pair.negative)) < 1e-5


def test_the_parameter_of_the_paper_table_is_monotone_at_its_ends(pair):
    """omega moves the result continuously from the base as the weak model to CFG."""
    plain = g.sample(pair.tuned, pair.positive, pair.negative)
    errors = [g.error(g.sample(g.personalize(pair.tuned, pair.base, omega), pair.positive, pair.negative), plain) for omega in (0.0, 0.5, 0.9, 0.999)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.01


def compare(tuned, base) -> dict:
    return pack("guidance.difference").compare(tuned, base).changes


def installed(tuned, base) -> tuple[list, int]:
    """(the forwards that guidance puts in, bytes that they keep)."""
    with (
        torch.inference_mode(),
        pack("guidance.weak_model")
        .WeakModel(tuned, base, pack("guidance.schedule").Schedule(0.3))
        .installed(tuned, pack("guidance.layers").Rows(0.3), False) as layers,
    ):
        return layers, sum(layer.nbytes() for layer in layers)


def ways_of(tuned, base) -> set[str]:
    return {type(layer).__name__ for layer in installed(tuned, base)[0]}


def sample_guider(guider, steps=3):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    samplers = g.comfy("comfy.samplers")
    sigmas = samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", steps)
    return guider.sample(noise, torch.zeros(1, 4, 8, 8), samplers.sampler_object("euler"), sigmas, seed=2)


def load_state(state):
    """A model of its own from a UNet's state dict, by the host's loader."""
    with torch.inference_mode():
        unet = {key.removeprefix("diffusion_model."): value.clone() for key, value in state.items() if key.startswith("diffusion_model.")}
        return g.comfy("comfy.sd").load_diffusion_model_state_dict(unet, model_options={"dtype": torch.float32})


@pytest.mark.parametrize("family", ["SDXL", "SD3"])
def test_other_families(family):
    """The larger UNet with its pooled prompt, and a diffusion transformer (flow prediction, fused projections, sliced LoRAs)."""
    base = families.random_model(family)
    conds = families.random_conditioning(family, 1), families.random_conditioning(family, 2)
    channels = base.get_model_object("latent_format").latent_channels
    for kind in ("lora", "dora"):
        tuned = g.with_lora(base, g.lora(base, kind=kind), 0.8)
        if family == "SD3" and kind == "lora":
            adapter = g.comfy("comfy.weight_adapter").LoRAAdapter(set(), (torch.randn(128, 4), torch.randn(4, 128), 4.0, None, None, None))
            tuned.add_patches({("diffusion_model.joint_blocks.0.x_block.attn.qkv.weight", (0, 128, 128)): adapter}, 0.1)
        options = {"steps": 3, "latent": {"samples": torch.zeros(2, channels, 8, 8)}}
        truth = g.sample(g.brute_force(tuned, base, 0.3), *conds, **options)
        assert g.error(g.sample(g.personalize(tuned, base, 0.3), *conds, **options), truth) < 1e-4
        assert g.error(g.sample(tuned, *conds, **options), truth) > 0.02
