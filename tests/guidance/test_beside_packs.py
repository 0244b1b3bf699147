"""Cases 36 and 58. Beside the mechanisms of other packs: what they do to rows, conditions and modules leaves guidance exact, or is refused in a sentence."""

import functools
import logging

import pytest
import torch
from kindred_testing import guidance_families as families
from kindred_testing import guidance_models as g
from kindred_testing import host_version, pack

OMEGA = 0.3


def exact(pair, situation, limit=1e-5, tuned=None, **options):
    """Ours under `situation`, a function of a model, against brute force under the same, and both far from CFG."""
    tuned, options = tuned or pair.tuned, {"steps": 2, **options}
    truth = g.sample(situation(g.brute_force(tuned, pair.base, OMEGA)), pair.positive, pair.negative, **options)
    assert g.error(g.sample(situation(tuned), pair.positive, pair.negative, **options), truth) > 1e-3, "CFG gives the same, so nothing is shown"
    ours = g.sample(situation(g.personalize(tuned, pair.base, OMEGA)), pair.positive, pair.negative, **options)
    assert g.error(ours, truth) <= limit
    assert g.error(g.sample(situation(g.little_memory(g.personalize(tuned, pair.base, OMEGA))), pair.positive, pair.negative, **options), truth) <= limit


# ---- rows repeated inside of the model -------------------------------------------------------------------------------------------


def coupler(positive: int, negative: int):
    """Regional prompts: the cross-attention of a side is computed once for each of its regions and put together by masks of the tokens."""
    regions = {0: positive, 1: negative}

    def apply(model):
        clone = model.clone()

        def split(q, k, v, extra):
            chunks = extra["cond_or_uncond"]
            parts = [[], [], []]
            for side, *one in zip(chunks, *(x.chunk(len(chunks)) for x in (q, k, v)), strict=True):
                for region in range(regions[side]):
                    for part, x, factor in zip(parts, one, (1.0, 1.0 + 0.4 * region, 1.0 - 0.3 * region), strict=True):
                        part.append(x * factor)
            return tuple(torch.cat(part) for part in parts)

        def join(out, extra):
            chunks = extra["cond_or_uncond"]
            rows, at, joined = out.shape[0] // sum(regions[side] for side in chunks), 0, []
            for side in chunks:
                of = out[at * rows : (at + regions[side]) * rows].unflatten(0, (regions[side], rows))
                at += regions[side]
                mask = torch.arange(out.shape[1]) * regions[side] // out.shape[1]
                joined.append(sum(of[i] * (mask == i).view(1, -1, 1) for i in range(regions[side])))
            return torch.cat(joined)

        clone.set_model_attn2_patch(split)
        clone.set_model_attn2_output_patch(join)
        return clone

    return apply


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("positive, negative", [(2, 1), (3, 1), (1, 2), (1, 3), (3, 2), (2, 2)])
def test_regional_prompts(pair, positive, negative, batch):
    exact(pair, coupler(positive, negative), batch=batch, steps=1)


def test_regional_prompts_that_a_hook_brings(pair):
    """The patches come with conditions of both sides, at the moment of their forward."""
    hooks = g.comfy("comfy.hooks")
    group = hooks.HookGroup()
    group.add(hooks.TransformerOptionsHook(transformers_dict={"patches": coupler(3, 2)(pair.base).model_options["transformer_options"]["patches"]}))
    both = [hooks.set_hooks_for_conditioning(c, group) for c in (pair.positive, pair.negative)]
    truth = g.sample(g.brute_force(pair.tuned, pair.base, OMEGA), *both, steps=1)
    assert g.error(g.sample(g.brute_force(pair.tuned, pair.base, OMEGA), pair.positive, pair.negative, steps=1), truth) > 1e-3, "the hook does nothing"
    assert g.error(g.sample(g.personalize(pair.tuned, pair.base, OMEGA), *both, steps=1), truth) < 1e-5


def test_blocks_that_are_replaced(pair):
    """An attention of another pack in place of the host's, which turns the rows of the batch round and back."""

    def situation(model):
        clone = model.clone()

        def turned(q, k, v, extra):
            with torch.no_grad():
                return g.comfy("comfy.ldm.modules.attention").optimized_attention(q.flip(0), k.flip(0), v.flip(0), extra["n_heads"]).flip(0)

        clone.set_model_attn1_replace(turned, "middle", 0, 0)
        return clone

    exact(pair, situation, batch=2)


# ---- batches cut by wrappers -----------------------------------------------------------------------------------------------------


def unnamed_halves(model):
    """A function wrapper that runs row by row, and does not say which conditions the rows belong to."""
    clone = model.clone()

    def rows(apply, arguments):
        x, t, c = arguments["input"], arguments["timestep"], arguments["c"]
        return torch.cat([apply(x[i : i + 1], t[i : i + 1], **{k: v[i : i + 1] if torch.is_tensor(v) else v for k, v in c.items()}) for i in range(len(x))])

    clone.set_model_unet_function_wrapper(rows)
    return clone


def reversed_rows(kind):
    """A wrapper around the host's forward or the network's that turns the batch round, and back afterwards."""

    def apply(model):
        clone = model.clone()

        def wrapper(executor, x, t, *args, **kwargs):
            def turn(value):
                return value.flip(0) if torch.is_tensor(value) and value.shape[:1] == x.shape[:1] else value

            return executor(turn(x), turn(t), *map(turn, args), **{name: turn(value) for name, value in kwargs.items()}).flip(0)

        clone.add_wrapper_with_key(kind, "another pack", wrapper)
        return clone

    return apply


def windows(named=True, length=2):
    """Sliding windows over the frames of a batch, as video packs have them: a wrapper around each prediction of all conditions."""

    def apply(model):
        clone = model.clone()

        def wrapper(executor, module, conds, x, timestep, options):
            total, count = [torch.zeros_like(x) for _ in conds], torch.zeros(len(x), 1, 1, 1)
            for start in range(len(x) - length + 1):
                part = slice(start, start + length)
                some = conds if named else [None if one is None else [{**c, "uuid": object()} for c in one] for one in conds]
                for all_of, out in zip(total, executor(module, some, x[part], timestep[part], options), strict=True):
                    all_of[part] += out
                count[part] += 1
            return [one / count for one in total]

        clone.add_wrapper_with_key("calc_cond_batch", "another pack", wrapper)
        return clone

    return apply


CUTS = {
    "function wrapper": unnamed_halves,
    "apply_model": reversed_rows("apply_model"),
    "diffusion_model": reversed_rows("diffusion_model"),
    "windows": windows(),
    "windows that rename": windows(named=False),
}


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("cut", CUTS)
def test_cut_and_turned_batches(pair, cut, order):
    """The pack's node before or after ours."""
    if order == "before":
        exact(pair, lambda model: model, tuned=CUTS[cut](pair.tuned), batch=3, steps=1)
    else:
        exact(pair, CUTS[cut], batch=3, steps=1)


@pytest.mark.parametrize("change", ["from nothing", "mixed"])
def test_conditions_of_unknown_origin_are_refused(pair, change):
    """A pack that makes conditions while sampling, or puts both sides into one list: nobody knows which the weak model predicts."""
    clone = g.personalize(pair.tuned, pair.base, OMEGA).clone()

    def wrapper(executor, module, conds, x, timestep, options):
        if change == "mixed":
            return executor(module, [conds[0] + conds[1]], x, timestep, options) * 2
        return executor(module, [[{"model_conds": c["model_conds"], "uuid": object()} for c in one] for one in conds], x, timestep, options)

    clone.add_wrapper_with_key("calc_cond_batch", "another pack", wrapper)
    with pytest.raises(RuntimeError, match="cannot tell which ones the weak model predicts"):
        g.sample(clone, pair.positive, pair.negative, steps=1)


def test_perp_neg_as_a_model_patch_is_refused(pair):
    """Core's deprecated node encodes an empty prompt of its own in each step; its guider is exact (test_course)."""
    model = g.node("PerpNeg", model=g.personalize(pair.tuned, pair.base, OMEGA), empty_conditioning=pair.negative, neg_scale=1.0)[0]
    with pytest.raises(RuntimeError, match="use Perp-Neg Guider"):
        g.sample(model, pair.positive, pair.negative, steps=1)


def test_a_forward_outside_of_predictions_is_refused(pair):
    """A sampler of another pack that calls the model itself."""
    clone = g.personalize(pair.tuned, pair.base, OMEGA).clone()

    def own_sampler(guider, sigmas, extra_args, callback, noise, *args):
        options = extra_args["model_options"]["transformer_options"]
        context = guider.conds["positive"][0]["model_conds"]["c_crossattn"].cond
        return guider.inner_model.apply_model(noise, sigmas[:1], c_crossattn=context, transformer_options=options)

    clone.add_wrapper_with_key("sampler_sample", "another pack", lambda executor, *args, **kwargs: own_sampler(*args))
    with pytest.raises(RuntimeError, match="outside the host's predictions"):
        g.sample(clone, pair.positive, pair.negative, steps=1)


# ---- modules put into the model --------------------------------------------------------------------------------------------------


class Motion(torch.nn.Module):
    """Mixes the frames of a batch, pixels first: what a motion module does to the rows, told how many frames a condition has."""

    frames = 2

    def __init__(self):
        super().__init__()
        self.mix = torch.nn.Linear(self.frames, self.frames)
        self.mix.weight.data = torch.eye(self.frames) + 0.3 * torch.randn(self.frames, self.frames, generator=torch.Generator().manual_seed(2))
        self.mix.bias.data.zero_()

    def forward(self, x):
        seen = x.unflatten(0, (-1, self.frames)).movedim(1, -1)  # [b f, c, h, w] -> [b, c, h, w, f]
        return self.mix(seen).movedim(-1, 1).flatten(0, 1)


def animated(model):
    """Motion modules behind the model's own blocks while it is loaded."""
    clone, motion = model.clone(), Motion()

    def inject(patcher):
        for block in patcher.model.diffusion_model.input_blocks:
            block.append(motion)

    def eject(patcher):
        for block in patcher.model.diffusion_model.input_blocks:
            block.pop(len(block) - 1)

    clone.set_injections("another pack", [g.comfy("comfy.patcher_extension").PatcherInjection(inject, eject)])
    return clone


@pytest.mark.parametrize("order", ["motion first", "guidance first"])
@pytest.mark.parametrize("kind", ["lora", "diff"])
def test_motion_modules_and_windows_in_both_orders(pair, order, kind):
    """Case 58. The whole film against brute force, whichever node comes first."""
    tuned = g.with_lora(pair.base, g.lora(pair.base, kind=kind), 0.8)
    options = {"steps": 2, "batch": 4}
    truth = g.sample(windows()(g.brute_force(animated(tuned), animated(pair.base), OMEGA)), pair.positive, pair.negative, **options)
    if order == "motion first":
        ours = g.personalize(windows()(animated(tuned)), pair.base, OMEGA)
    else:
        ours = windows()(animated(g.personalize(tuned, pair.base, OMEGA)))
    assert g.error(g.sample(ours, pair.positive, pair.negative, **options), truth) < 1e-5
    assert g.error(g.sample(windows()(animated(tuned)), pair.positive, pair.negative, **options), truth) > 1e-3
    assert g.error(g.sample(windows()(g.personalize(tuned, pair.base, OMEGA)), pair.positive, pair.negative, **options), truth) > 1e-3, "no motion"


def animated_in_between(model):
    """A motion module in the middle of each block, as before an upsampler: the places behind it move while the model is loaded."""
    clone, motion = model.clone(), Motion()

    def inject(patcher):
        for block in patcher.model.diffusion_model.output_blocks:
            block.insert(1, motion)

    def eject(patcher):
        for block in patcher.model.diffusion_model.output_blocks:
            block.pop(1)

    clone.set_injections("another pack", [g.comfy("comfy.patcher_extension").PatcherInjection(inject, eject)])
    return clone


def test_modules_between_the_layers_move_no_weight():
    """Case 58. Convolutions behind an injected module are found, also while the model of an earlier run still has the modules in it."""
    base = families.random_model("SD15", "narrow")
    positive, negative = families.random_conditioning("SD15", 1), families.random_conditioning("SD15", 2)
    tuned = g.with_lora(base, g.lora(base, convolutions=True), 0.8)
    options = {"steps": 2, "batch": 2}
    truth = g.sample(g.brute_force(animated_in_between(tuned), animated_in_between(base), OMEGA), positive, negative, **options)
    for _ in range(2):
        ours = g.personalize(animated_in_between(tuned), base, OMEGA)
        assert g.error(g.sample(ours, positive, negative, **options), truth) < 1e-5
        after = animated_in_between(g.personalize(tuned, base, OMEGA))
        assert g.error(g.sample(after, positive, negative, **options), truth) < 1e-5
    assert g.error(g.sample(animated_in_between(tuned), positive, negative, **options), truth) > 1e-3


def test_a_lora_is_loaded_whole_while_an_earlier_run_has_its_modules_in_the_model():
    """Case 58's relative: the layers behind an injected module have other paths for as long as it is there."""
    base = families.random_model("SD15", "narrow")
    positive, negative = families.random_conditioning("SD15", 1), families.random_conditioning("SD15", 2)
    adapter, load = g.lora(base, convolutions=True), pack("host.lora").load_lora
    whole = load(base, None, adapter)
    kept = animated_in_between(base)  # as the executor's cache keeps it
    g.sample(kept, positive, negative, steps=1, batch=2)
    assert any("mix" in name for name, _ in base.model.named_parameters()), "the modules are gone, so nothing is shown"
    again = load(base, None, adapter)
    assert again.model.patches.keys() == whole.model.patches.keys() and not again.notes


def test_modules_in_one_of_two_checkpoints_are_refused(pair):
    other, _ = g.base_model(seed=1)
    with pytest.raises(ValueError, match="only one of the two would have them"):
        g.sample(g.personalize(animated(other), pair.base, OMEGA), pair.positive, pair.negative, steps=1, batch=2)


def turned(forward, x, *args, context=None, **kwargs):
    """Turn the batch around inside of the network's own forward, and back."""
    given = {name: value.flip(0) if torch.is_tensor(value) and len(value) == len(x) else value for name, value in kwargs.items()}
    args = [value.flip(0) if torch.is_tensor(value) and len(value) == len(x) else value for value in args]
    return forward(x.flip(0), *args, context=context.flip(0), **given).flip(0)


class Turned:
    def __init__(self, forward):
        self.forward = forward

    def __call__(self, *args, **kwargs):
        return turned(self.forward, *args, **kwargs)


def disguised(turned, forward):
    """A function that says it comes from where the host's own comes from."""

    @functools.wraps(forward)
    def replacement(*args, **kwargs):
        return turned(forward, *args, **kwargs)

    return replacement


@pytest.mark.parametrize("replace", [functools.partial, lambda turned, forward: Turned(forward), disguised])
def test_a_method_in_whose_place_something_else_stands(pair, replace):
    """Case 36. A partial, an object or a wrapped function in the place of the network's forward may turn the rows: each side then goes alone."""

    def situation(model):
        clone = model.clone()
        forward = clone.model.diffusion_model.forward
        clone.add_object_patch("diffusion_model.forward", replace(turned, forward))
        return clone

    exact(pair, situation, batch=2)


def test_a_function_in_a_decorator_of_the_hosts_own_modules_is_still_another_packs():
    forward = torch.nn.Linear(1, 1).forward
    options = {"model_function_wrapper": torch.no_grad()(disguised(turned, forward))}
    assert "wraps the model's function" in pack("host.batch_rows").foreign_options(options, "ours")
    assert pack("host.batch_rows").foreign_options({"model_function_wrapper": torch.no_grad()(forward)}, "ours") is None


LAYER = "middle_block.1.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize("leaves", ["in time", "too late"])
@pytest.mark.parametrize("comes", ["before ours", "after ours"])
def test_a_forward_that_another_pack_replaces(pair, comes, leaves):
    """On top of ours it is exact, below ours it is refused, and the module is clean in the end, though the pack leaves later than we do."""
    layer = pair.base.model.diffusion_model.get_submodule(LAYER)
    held = []

    def put(layer):
        below = layer.forward
        held.append((layer, below, "forward" in vars(layer)))
        layer.forward = lambda x: below(x.roll(1, 0)).roll(-1, 0) * 1.5

    def take():
        while held:
            layer, below, own = held.pop()
            if own:
                layer.forward = below
            else:
                del layer.forward

    def with_pack(model):
        clone = model.clone()

        def around(executor, guider, *args, **kwargs):
            put(guider.inner_model.diffusion_model.get_submodule(LAYER))
            try:
                return executor(guider, *args, **kwargs)
            finally:
                if leaves == "in time":
                    take()

        clone.add_wrapper_with_key("sampler_sample", "another pack", around)
        return clone

    ours = g.personalize(with_pack(pair.tuned), pair.base, OMEGA) if comes == "before ours" else with_pack(g.personalize(pair.tuned, pair.base, OMEGA))
    before = sorted(vars(layer))
    picture = None
    if comes == "before ours":
        with pytest.raises(RuntimeError, match="Another node replaced the forward of a tuned layer"):
            g.sample(ours, pair.positive, pair.negative, steps=1)
    else:
        picture = g.sample(ours, pair.positive, pair.negative, steps=1)
    if leaves == "too late":
        take()
        if "forward" in vars(layer):
            assert g.error(layer.forward(torch.ones(2, 3, 320)), type(layer).forward(layer, torch.ones(2, 3, 320))) == 0, "ours is still at work"
            del layer.forward
    assert sorted(vars(layer)) == before
    if picture is None:
        return
    merged = dict(g.merged_state(pair.tuned)), dict(g.merged_state(g.interpolated(pair.tuned, pair.base, OMEGA)))
    for state in merged:
        for name in ("weight", "bias"):
            if f"diffusion_model.{LAYER}.{name}" in state:
                state[f"diffusion_model.{LAYER}.{name}"] = state[f"diffusion_model.{LAYER}.{name}"] * 1.5
    strong, weak = (g.with_state(pair.base, state) for state in merged)
    assert g.error(picture, g.sample(g.brute_force(strong, weak, 0.0), pair.positive, pair.negative, steps=1)) < 1e-5


# ---- what is told ----------------------------------------------------------------------------------------------------------------


def messages(caplog):
    return [record.getMessage() for record in caplog.records if "Personalization Guidance" in record.getMessage()]


def test_the_log_says_why_there_are_two_forwards(pair, caplog):
    """It names what stands in the way, and blames nobody where nothing does."""
    with caplog.at_level(logging.INFO):
        g.sample(g.personalize(pair.tuned, pair.base, OMEGA), pair.positive, pair.negative, steps=1)
        g.sample(coupler(2, 1)(g.personalize(pair.tuned, pair.base, OMEGA)), pair.positive, pair.negative, steps=1)
    batched, apart = messages(caplog)
    assert "in one batched forward a step" in batched and "because" not in batched
    assert f"each side in a forward of its own, because {__name__} patches the inside of the model" in apart


def test_cfg_one_is_told(pair, caplog):
    """Case 42. The habit of Flux: no negative prediction, so nothing is claimed."""
    with caplog.at_level(logging.INFO):
        g.sample(g.personalize(pair.tuned, pair.base, OMEGA), pair.positive, pair.negative, steps=2, cfg=1.0)
    assert ["At cfg 1 the host makes none" in message for message in messages(caplog)] == [True]


@pytest.mark.skipif(host_version() < (0, 24), reason="DualModelGuider came with 0.24")
@pytest.mark.parametrize("place", ["model", "model_negative"])
def test_a_guider_of_two_models_is_told(pair, caplog, place):
    """Case 42. Core's guider predicts the negative side with its second model, which guidance on either of the two cannot reach."""
    other, _ = g.base_model(seed=1)
    models = {"model": other, "model_negative": other, place: g.personalize(pair.tuned, pair.base, OMEGA)}
    plain = {**models, place: pair.tuned}
    custom, samplers = g.comfy("comfy_extras.nodes_custom_sampler"), g.comfy("comfy.samplers")

    def draw(models):
        with torch.inference_mode():
            guider = custom.DualModelGuider.execute(positive=pair.positive, negative=pair.negative, cfg=7.5, **models).args[0]
            sigmas = samplers.calculate_sigmas(guider.model_patcher.get_model_object("model_sampling"), "normal", 2)
            noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(2))
            return guider.sample(noise, torch.zeros(1, 4, 8, 8), samplers.sampler_object("euler"), sigmas, seed=2)

    with caplog.at_level(logging.INFO):
        guided = draw(models)
    assert torch.equal(guided, draw(plain))
    assert ["had no effect" in message for message in messages(caplog)] == [True]


def test_bypassed_loras_alone_count_as_bypassed(pair):
    """Case 58. The host's own key; other injections are no LoRAs."""
    host = pack("host.patcher")
    with torch.inference_mode():
        bypassed, _ = g.comfy("comfy.sd").load_bypass_lora_for_models(pair.base, None, g.lora(pair.base), 1.0, 0)
    assert host.has_bypass(bypassed) and not host.has_bypass(animated(pair.base))
