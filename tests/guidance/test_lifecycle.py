"""Before and after: the module that everybody shares is bit for bit the same, whatever happened in between."""

import pytest
import torch
from kindred_testing import guidance_models as g
from kindred_testing import pack


def fingerprint(patcher) -> tuple:
    """All tensors of the module, and what each submodule carries beside them."""
    tensors = {name: value.clone() for name, value in patcher.model.state_dict().items()}
    return tensors, {name: sorted(vars(module)) for name, module in patcher.model.diffusion_model.named_modules()}


def assert_same(before, after):
    assert before[1] == after[1]
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())


def loaded(pair, tuned):
    """The state after plain sampling with `tuned`: what the module must be again."""
    plain = g.sample(tuned, pair.positive, pair.negative, steps=2)
    return plain, fingerprint(tuned)


@pytest.fixture(scope="module", params=["dora", "diff"])
def tuned(request, pair):
    return g.with_lora(pair.base, g.lora(pair.base, kind=request.param, seed=41), 0.8)


def test_after_a_run(pair, tuned):
    plain, before = loaded(pair, tuned)
    g.sample(g.personalize(tuned, pair.base, 0.3), pair.positive, pair.negative, steps=2)
    assert_same(before, fingerprint(tuned))
    assert torch.equal(g.sample(tuned, pair.positive, pair.negative, steps=2), plain)


def test_incoming_models_are_not_touched(pair, tuned):
    def face(model):
        return (
            {key: list(map(id, patches)) for key, patches in model.patches.items()},
            model.model_options.copy(),
            model.wrappers.copy(),
            model.patches_uuid,
            dict(model.additional_models),
        )

    before = face(tuned), face(pair.base)
    g.sample(g.personalize(tuned, pair.base, 0.3), pair.positive, pair.negative, steps=1)
    assert (face(tuned), face(pair.base)) == before


@pytest.mark.parametrize("stop", ["interrupt", "exception", "out of memory"])
def test_after_a_stop_in_mid_step(pair, tuned, stop):
    """The host's interrupt (a BaseException), an error and an out-of-memory in the middle of a forward, with our layers in place."""
    plain, before = loaded(pair, tuned)
    management = g.comfy("comfy.model_management")
    stops = {
        "interrupt": management.throw_exception_if_processing_interrupted,
        "exception": lambda: 1 / 0,
        "out of memory": lambda: raise_(management.OOM_EXCEPTION("test")),
    }
    expected = {"interrupt": management.InterruptProcessingException, "exception": ZeroDivisionError, "out of memory": management.OOM_EXCEPTION}[stop]
    guided, calls = g.personalize(tuned, pair.base, 0.3).clone(), []

    def patch(h, extra):
        calls.append(1)
        if len(calls) == 4:  # inside the second step
            if stop == "interrupt":
                management.interrupt_current_processing()
            stops[stop]()
        return h

    guided.set_model_attn2_output_patch(patch)
    with pytest.raises(expected):
        g.sample(guided, pair.positive, pair.negative, steps=3)
    assert_same(before, fingerprint(tuned))
    management.throw_exception_if_processing_interrupted()  # the flag is down
    assert torch.equal(g.sample(tuned, pair.positive, pair.negative, steps=2), plain)


def raise_(error):
    raise error


def test_a_failure_while_the_weights_are_put_in_place(pair, tuned):
    """Half installed is not installed."""
    plain, before = loaded(pair, tuned)
    guided = g.personalize(tuned, pair.base, 0.3)
    routing = guided.get_wrappers("sampler_sample", "kindred_guidance")[0].__self__
    change = list(routing.weak.difference.changes.values())[-1]
    broken = pack("guidance.difference").Change(change.key.replace("transformer_blocks", "missing"), None)
    routing.weak.difference.changes["broken"] = broken
    routing.weak.difference.changes = {**routing.weak.difference.changes, "diffusion_model.missing.weight": broken}
    with pytest.raises(AttributeError):
        g.sample(guided, pair.positive, pair.negative, steps=2)
    assert_same(before, fingerprint(tuned))
    assert torch.equal(g.sample(tuned, pair.positive, pair.negative, steps=2), plain)


def test_two_clones_with_different_omega(pair, tuned):
    """Made together, run in turns: each gives what it gives alone."""
    alone = {omega: g.sample(g.personalize(tuned, pair.base, omega), pair.positive, pair.negative) for omega in (0.0, 0.6)}
    together = {omega: g.personalize(tuned, pair.base, omega) for omega in alone}
    for omega in (0.0, 0.6, 0.0):
        assert torch.equal(g.sample(together[omega], pair.positive, pair.negative), alone[omega])
    assert not torch.equal(alone[0.0], alone[0.6])


def test_a_run_inside_a_run(pair, tuned):
    """A node that samples while sampling (hires passes in callbacks): the inner run has its own omega, the outer one goes on with its own."""
    alone = {omega: g.sample(g.personalize(tuned, pair.base, omega), pair.positive, pair.negative, steps=3) for omega in (0.0, 0.6)}
    inner, outer, seen = g.personalize(tuned, pair.base, 0.6), g.personalize(tuned, pair.base, 0.0).clone(), []

    def nested(arguments):
        if not seen:
            seen.append(None)
            current = outer.model.current_patcher
            seen[0] = g.sample(inner, pair.positive, pair.negative, steps=3)
            outer.model.current_patcher = current
        return arguments["denoised"]

    outer.set_model_sampler_post_cfg_function(nested)
    assert torch.equal(g.sample(outer, pair.positive, pair.negative, steps=3), alone[0.0])
    assert torch.equal(seen[0], alone[0.6])


def test_memory_is_given_back(pair, tuned):
    """No second weight outlives its run."""
    import gc
    import weakref

    guided = g.personalize(tuned, pair.base, 0.3)
    routing = guided.get_wrappers("sampler_sample", "kindred_guidance")[0].__self__
    seen = []
    clone = guided.clone()
    clone.set_model_attn2_output_patch(lambda h, extra: (seen or seen.extend(weakref.ref(layer) for layer in routing.run.layers), h)[1])
    g.sample(clone, pair.positive, pair.negative, steps=1)
    gc.collect()
    assert seen and not any(reference() for reference in seen)
    assert routing.run is None


def test_the_last_guidance_holds(pair, tuned):
    """A personalized model that comes into another of our nodes: no guidance upon guidance."""
    first = g.personalize(tuned, pair.base, 0.0)
    for omega in (0.6, 1.0):
        again = g.sample(g.personalize(first, pair.base, omega), pair.positive, pair.negative, steps=2)
        assert torch.equal(again, g.sample(g.personalize(tuned, pair.base, omega), pair.positive, pair.negative, steps=2))
