"""A concept on its token's rows beside what people put into the same graph: ControlNet, LoRA hooks, little memory, packed weights."""

import pytest
import torch
from kindred_testing import guidance_models as g
from kindred_testing import pack
from kindred_testing import rows as r
from kindred_testing.guidance_models import comfy
from kindred_testing.packed import packed

PROMPT, CLASS = "a photo of a <v1> dog on the beach", "a photo of a dog on the beach"


def masked(base, positive, one, *conditions, **how):
    """The picture of the base model with masked projections; `positive`: the prompt as it was encoded."""
    with r.BruteForce(base[0], r.named(positive, [5, 6], one)):
        return r.sample(base[0], *conditions, **how)


def controlled(positive, negative, start=0.0, end=1.0):
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(1))
    return g.node(
        "ControlNetApplyAdvanced",
        positive=positive,
        negative=negative,
        control_net=g.control_net(),
        image=image,
        strength=1.0,
        start_percent=start,
        end_percent=end,
    )[:2]


@pytest.mark.parametrize("start, end, batch", [(0.0, 1.0, 1), (0.4, 1.0, 2)])
def test_a_controlnet(base, one, start, end, batch):
    """It reads the same text with weights of its own, which the concept does not change."""
    model, clip = r.loaded(base, one)
    positive = r.encode(clip, PROMPT)
    conditions = controlled(positive, r.encode(clip, ""), start, end)
    got = r.sample(model, *conditions, steps=4, batch=batch)
    r.assert_close(got, masked(base, positive, one, *conditions, steps=4, batch=batch), r.sample(base[0], *conditions, steps=4, batch=batch))
    assert (got - r.sample(model, positive, r.encode(clip, ""), steps=4, batch=batch)).abs().max() > 1e-3, "the ControlNet changed nothing"
    of_class = controlled(r.encode(clip, CLASS), r.encode(clip, ""), start, end)
    assert torch.equal(r.sample(model, *of_class, steps=4, batch=batch), r.sample(base[0], *of_class, steps=4, batch=batch))


def hooked(base, *conditionings, strength=1.0, keyframes=()):
    hooks = comfy("comfy.hooks")
    group = hooks.create_hook_lora(g.lora(base[0], seed=21, size=0.3), strength, 0.0)
    if keyframes:
        schedule = hooks.HookKeyframeGroup()
        for at, factor in keyframes:
            schedule.add(hooks.HookKeyframe(strength=factor, start_percent=at))
        group.set_keyframes_on_hooks(schedule)
    return [hooks.set_hooks_for_conditioning(one, group) for one in conditionings]


@pytest.mark.parametrize("keyframes", [(), ((0.0, 0.0), (0.5, 1.0))])
def test_a_lora_hook_on_the_prompt(base, one, keyframes):
    """The host changes the K and V weights between forwards; the difference comes on top of whichever they are."""
    model, clip = r.loaded(base, one)
    positive, negative = r.encode(clip, PROMPT), r.encode(clip, "")
    conditions = hooked(base, positive, keyframes=keyframes)[0], negative
    got = r.sample(model, *conditions, steps=4)
    r.assert_close(got, masked(base, positive, one, *conditions, steps=4), r.sample(base[0], *conditions, steps=4))
    assert (got - r.sample(model, positive, negative, steps=4)).abs().max() > 1e-3, "the hook changed nothing"
    of_class = hooked(base, r.encode(clip, CLASS), keyframes=keyframes)[0], negative
    assert torch.equal(r.sample(model, *of_class, steps=4), r.sample(base[0], *of_class, steps=4))


@pytest.fixture
def little_memory(monkeypatch):
    """The host loads almost no weight: each is cast, and patched, when its layer is called."""
    load = comfy("comfy.model_management").LoadedModel.model_load
    comfy("comfy.model_management").unload_all_models()
    monkeypatch.setattr(comfy("comfy.model_management").LoadedModel, "model_load", lambda self, *args, **kwargs: load(self, 1, **kwargs))
    yield
    comfy("comfy.model_management").unload_all_models()


def test_little_memory(base, one, little_memory):
    """With an ordinary LoRA beside it, whose patches then wait at the layers."""
    tuned, _ = pack("host.lora").apply_lora(base[0], None, dict(r.concept(base, seed=3, size=0.02).lora))
    model, clip = r.loaded((tuned, base[1]), one)
    positive, negative = r.encode(clip, PROMPT), r.encode(clip, "")
    got = r.sample(model, positive, negative)
    assert base[0].model.model_lowvram, "everything was loaded"
    r.assert_close(got, masked((tuned, clip), positive, one, positive, negative), r.sample(tuned, positive, negative))
    assert torch.equal(r.sample(model, r.encode(clip, CLASS), negative), r.sample(tuned, r.encode(clip, CLASS), negative))


def test_weights_in_fp8(base, one):
    """The base's K and V are packed; the concept's differences are not."""
    packed = g.reload(g.quantised(g.merged_state(base[0]))), base[1]
    model, clip = r.loaded(packed, one)
    positive, negative = r.encode(clip, PROMPT), r.encode(clip, "")
    got = r.sample(model, positive, negative)
    r.assert_close(got, masked(packed, positive, one, positive, negative), r.sample(packed[0], positive, negative))
    assert torch.equal(r.sample(model, r.encode(clip, CLASS), negative), r.sample(packed[0], r.encode(clip, CLASS), negative))


def test_weights_of_a_gguf_file(base, one):
    """Only their own loader can read them, and the host's list of weights has the shapes of their bytes."""
    model, plain = packed(base[0])
    loaded, clip = r.loaded((model, base[1]), one)
    positive, negative = r.encode(clip, PROMPT), r.encode(clip, "")
    got = r.sample(loaded, positive, negative)
    r.assert_close(got, masked((plain, clip), positive, one, positive, negative), r.sample(plain, positive, negative))
    whole, _ = pack("host.lora").apply_lora(model, None, dict(one.lora))  # without its metadata: on all rows
    plainly, _ = pack("host.lora").apply_lora(plain, None, dict(one.lora))
    r.assert_close(r.sample(whole, positive, negative), r.sample(plainly, positive, negative), got)
