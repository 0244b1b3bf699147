"""To the rest of the host, Personalization Guidance is CFG: each situation's latents against two modules with explicitly interpolated weights."""

from types import SimpleNamespace

import pytest
import torch
from kindred_testing import guidance_models as g

OMEGA = 0.3


def same(x):
    return x


class Situation(SimpleNamespace):
    """`model`, `positive`, `negative`: what is done to each before sampling; `sampling`: further options of the sampler."""

    def __init__(self, model=same, positive=same, negative=same, limit=1e-5, **sampling):
        super().__init__(model=model, positive=positive, negative=negative, limit=limit, sampling=sampling)


def latent(**more) -> dict:
    generator = torch.Generator().manual_seed(3)
    return {"samples": torch.randn(more.pop("batch", 1), 4, 8, 8, generator=generator), **more}


def half_mask(size=64):
    mask = torch.zeros(1, size, size)
    mask[:, :, : size // 2] = 1.0
    return mask


def area(x=0, width=32, strength=1.0):
    return lambda c: g.node("ConditioningSetArea", conditioning=c, width=width, height=64, x=x, y=0, strength=strength)[0]


def masked(strength=1.0, where="default"):
    return lambda c: g.node("ConditioningSetMask", conditioning=c, mask=half_mask(), set_cond_area=where, strength=strength)[0]


def combined(one, other):
    return lambda c: g.node("ConditioningCombine", conditioning_1=one(c), conditioning_2=other(scaled(c)))[0]


def scaled(c, factor=0.7):
    """Another prompt, as far as a model is concerned."""
    return [[tensor * factor, extra] for tensor, extra in c]


def longer(c):
    """A prompt of two chunks: the host pads the other side to batch them."""
    return [[torch.cat([tensor, tensor * 0.5], 1), extra] for tensor, extra in c]


def timesteps(start, end):
    return lambda c: g.node("ConditioningSetTimestepRange", conditioning=c, start=start, end=end)[0]


def hooked(strength, seed=21):
    """A LoRA that holds for this conditioning alone. The same hook object for both models of a comparison."""
    group = {}

    def apply(c):
        if not group:
            base, _ = g.base_model()
            group["hook"] = g.comfy("comfy.hooks").create_hook_lora(g.lora(base, seed=seed, size=0.3), strength, 0.0)
        return g.comfy("comfy.hooks").set_hooks_for_conditioning(c, group["hook"])

    return apply


def controlled(c, start=0.0, end=1.0):
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    return g.node(
        "ControlNetApplyAdvanced", positive=c, negative=c, control_net=g.control_net(), image=image, strength=1.0, start_percent=start, end_percent=end
    )[0]


def patched_by(name, **inputs):
    return lambda model: g.node(name, model=model, **inputs)[0]


def ip_adapter(model):
    """Adds to the cross-attention output, on the positive rows more than on the negative ones, as IP-Adapters do."""
    clone = model.clone()

    def patch(out, extra):
        chunks = extra["cond_or_uncond"]
        scale = torch.tensor([0.1 if side else 0.4 for side in chunks]).repeat_interleave(out.shape[0] // len(chunks))
        return out + scale.view(-1, 1, 1).to(out) * out.roll(1, -1)

    clone.set_model_attn2_output_patch(patch)
    return clone


def drawn_alike(patch):
    """`patch`, with the host's random numbers drawn anew for each forward, or batches could not be compared with single forwards."""

    def apply(model):
        clone = patch(model).clone()
        clone.add_wrapper_with_key("diffusion_model", "drawn_alike", lambda executor, *args, **kwargs: (torch.manual_seed(0), executor(*args, **kwargs))[1])
        return clone

    return apply


def offloaded(model, share=1.0):
    """After loading, the host takes `share` of the model off the device again: these layers patch their weight anew in each forward."""
    clone = model.clone()

    def prepare(executor, patcher, *args, **kwargs):
        result = executor(patcher, *args, **kwargs)
        patcher.partially_unload(torch.device("cpu"), 1e12 if share == 1.0 else share * patcher.model_size())
        anew = [bool(module.weight_function) for path, module in patcher.model.named_modules() if f"{path}.weight" in patcher.patches]
        assert (all(anew) if share == 1.0 else any(anew) and not all(anew)) or not patcher.patches
        return result

    clone.add_wrapper_with_key("prepare_sampling", "offloaded", prepare)
    return clone


def chunked(model):
    """A function wrapper that splits the batch and says so, as tiling nodes do."""
    clone = model.clone()

    def wrapper(apply, arguments):
        x, t, c, chunks = arguments["input"], arguments["timestep"], arguments["c"], arguments["cond_or_uncond"]
        rows, out = x.shape[0] // len(chunks), []
        for i, side in enumerate(chunks):
            part = slice(i * rows, (i + 1) * rows)
            options = {**c["transformer_options"], "cond_or_uncond": [side]}
            out.append(apply(x[part], t[part], **{**{k: v[part] if torch.is_tensor(v) else v for k, v in c.items()}, "transformer_options": options}))
        return torch.cat(out)

    clone.set_model_unet_function_wrapper(wrapper)
    return clone


SITUATIONS = {
    "image to image": Situation(latent=latent(), denoise=0.6),
    "inpainting mask": Situation(latent=latent(noise_mask=half_mask())),
    "differential diffusion": Situation(lambda m: g.node("DifferentialDiffusion", model=m)[0], latent=latent(noise_mask=half_mask())),
    "batch of three": Situation(batch=3),
    "batch index": Situation(latent=latent(batch=2, batch_index=[4, 1])),
    "start and end step": Situation(latent=latent(), steps=6, start_step=2, last_step=5, force_full_denoise=False),
    "no added noise": Situation(latent=latent(), steps=6, start_step=3, disable_noise=True),
    "two conditions a side": Situation(positive=combined(same, same), negative=combined(same, same)),
    "prompts of different length": Situation(positive=longer),
    "area on one side": Situation(positive=combined(area(), same)),
    "areas on both sides": Situation(positive=combined(area(), area(32)), negative=combined(area(16, 16, 0.5), same), batch=2),
    "mask on one side": Situation(positive=combined(masked(), same)),
    "mask bounds": Situation(positive=combined(masked(0.8, "mask bounds"), same), negative=masked(0.5)),
    "timestep ranges": Situation(positive=combined(timesteps(0, 0.5), timesteps(0.5, 1)), negative=timesteps(0, 0.7), steps=5),
    "control net": Situation(positive=controlled, negative=controlled),
    "control net on one side": Situation(positive=controlled),
    "control net for a while": Situation(positive=lambda c: controlled(c, 0.2, 0.6), steps=5),
    "ip-adapter patch": Situation(ip_adapter),
    "hook on the positive": Situation(positive=hooked(0.8)),
    "hook on the negative": Situation(negative=hooked(0.8, 22)),
    "hooks on both sides and an area": Situation(positive=combined(hooked(0.7, 23), area()), negative=hooked(-0.4, 24)),
    "freeu": Situation(patched_by("FreeU_V2", b1=1.3, b2=1.4, s1=0.9, s2=0.2)),
    "perturbed attention": Situation(patched_by("PerturbedAttentionGuidance", scale=2.0)),
    "self-attention guidance": Situation(patched_by("SelfAttentionGuidance", scale=0.5, blur_sigma=2.0)),
    "rescale cfg": Situation(patched_by("RescaleCFG", multiplier=0.7)),
    "adaptive projected guidance": Situation(patched_by("APG", eta=0.5, norm_threshold=5.0, momentum=-0.5)),
    "tangential damping": Situation(patched_by("TCFG")),
    "mahiro": Situation(patched_by("Mahiro")),
    "hypertile": Situation(drawn_alike(patched_by("HyperTile", tile_size=1, swap_size=1, max_depth=0, scale_depth=False)), size=16),
    "token merging": Situation(drawn_alike(patched_by("TomePatchModel", ratio=0.3))),
    "v-prediction": Situation(patched_by("ModelSamplingDiscrete", sampling="v_prediction", zsnr=True), limit=1e-4),  # sigma begins at 4,500
    "context windows": Situation(
        patched_by(
            "ContextWindowsManual",
            context_length=3,
            context_overlap=1,
            context_schedule="standard_static",
            context_stride=1,
            closed_loop=False,
            fuse_method="pyramid",
            dim=0,
            freenoise=False,
        ),
        batch=5,
    ),
    "context windows with free noise": Situation(
        patched_by(
            "ContextWindowsManual",
            context_length=3,
            context_overlap=1,
            context_schedule="standard_static",
            context_stride=1,
            closed_loop=False,
            fuse_method="pyramid",
            dim=0,
            freenoise=True,
        ),
        batch=5,
    ),
    "little memory": Situation(g.little_memory, positive=combined(same, same), batch=2),
    "offloaded weights": Situation(offloaded),
    "low VRAM": Situation(lambda m: offloaded(m, 0.5), size=32, steps=1),
    "a larger image with a hook": Situation(positive=hooked(0.8, 25), size=32, steps=1),
    "a larger image with areas": Situation(positive=combined(area(), area(32, 160)), negative=combined(area(64, 96, 0.5), same), size=32, steps=1),
    "a wrapper that splits batches": Situation(chunked, batch=2),
}


def compare(pair, ours, truth, plain, situation: Situation):
    conds = situation.positive(pair.positive), situation.negative(pair.negative)
    options = {"steps": 3, **situation.sampling}
    expected = g.sample(situation.model(truth), *conds, **options)
    assert g.error(g.sample(situation.model(ours), *conds, **options), expected) <= situation.limit
    assert g.error(g.sample(situation.model(plain), *conds, **options), expected) > 1e-3, "CFG gives the same, so nothing is shown"


@pytest.mark.parametrize("name", SITUATIONS)
def test_situation(pair, pairs, name):
    compare(pair, *pairs["factors"], SITUATIONS[name])


OTHERS = (
    "areas on both sides",
    "hook on the positive",
    "hooks on both sides and an area",
    "control net on one side",
    "perturbed attention",
    "timestep ranges",
    "context windows",
    "little memory",
    "offloaded weights",
    "ip-adapter patch",
    "inpainting mask",
    "hypertile",
    "v-prediction",
)


@pytest.mark.parametrize("way", ["second weights", "second module"])
@pytest.mark.parametrize("name", OTHERS)
def test_situation_of_the_other_ways(pair, pairs, name, way):
    compare(pair, *pairs[way], SITUATIONS[name])


@pytest.mark.parametrize("name", ["areas on both sides", "hook on the positive", "little memory", "offloaded weights", "low VRAM", "batch of three"])
def test_situation_of_an_adapter_that_multiplies(pair, name):
    """DoRA: the base is read back from the tuned weight, wherever and whenever that is made."""
    tuned = g.with_lora(pair.base, g.lora(pair.base, kind="dora", seed=33), 0.8)
    compare(pair, g.personalize(tuned, pair.base, OMEGA), g.brute_force(tuned, pair.base, OMEGA), tuned, SITUATIONS[name])


@pytest.mark.parametrize("patch", ["rescale cfg", "ip-adapter patch"])
def test_patches_before_ours(pair, patch):
    """The same patches on the model that comes into our node."""
    model = SITUATIONS[patch].model
    ours, truth = g.personalize(model(pair.tuned), pair.base, OMEGA), g.brute_force(model(pair.tuned), pair.base, OMEGA)
    compare(pair, ours, truth, model(pair.tuned), Situation())
