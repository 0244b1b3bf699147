"""The host's sampling: its KSampler function, its guider class, the conditions of a run, and inputs copied from core's nodes."""

from __future__ import annotations

import math
from typing import Any

import comfy.samplers

CFGGuider: Any = comfy.samplers.CFGGuider  # takes any `types.Model`; its own signature asks for the host's class
SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS: list[str] = comfy.samplers.KSampler.SCHEDULERS

Conditions = list  # of dicts, one per entry of a conditioning, as the host's guiders hold them while sampling


def ksample(*args, **kwargs) -> dict:
    """Call core KSampler's own function, with noise, preview, progress bar, masks and batch index. Returns the LATENT."""
    import nodes  # the host's top-level module

    return nodes.common_ksampler(*args, **kwargs)[0]


def mark_sides(guider, key: str, sides) -> bool:
    """Mark each condition of a run under `key` with the name of the guider's list that holds it. Returns whether any list of `sides` has conditions.

    The marks survive when the host and other packs copy conditions as dicts. Only the run's own lists are changed; the guider keeps the
    conditionings that the user connected.
    """
    for name, conditions in guider.conds.items():
        for i, condition in enumerate(conditions or ()):
            conditions[i] = {**condition, key: name}
    return any(guider.conds.get(side) for side in sides)


def sides_of(conditions: Conditions | None, key: str) -> set:
    """The marks of a list of conditions. None is among them if a condition came from no list of the guider."""
    return {condition.get(key) for condition in conditions or ()}


def is_marked(conditions: Conditions | None, key: str) -> bool:
    """Does the list hold a condition of the guider?"""
    return bool(sides_of(conditions, key) - {None})


def add_wrappers(model_options: dict, key: str, **wrappers) -> None:
    """Add `wrappers` (named as in the host, in lower case) to the options of one run, as the innermost ones."""
    for name, wrapper in wrappers.items():
        by_key = model_options.setdefault("transformer_options", {}).setdefault("wrappers", {}).setdefault(name, {})
        by_key.pop(key, None)  # a run inside a run has them already
        by_key[key] = [wrapper]


def has_weight_hooks(guider) -> bool:
    """Do hooks of this run's conditionings change weights?"""
    return any("hooks" in condition for conditions in guider.conds.values() for condition in conditions or ())


def percent_to_sigma(guider):
    """The model's function from the part of the schedule (0 = pure noise, 1 = the end) to sigma, within a run."""
    return guider.inner_model.model_sampling.percent_to_sigma


def percent_to_sigma_before(guider):
    """`percent_to_sigma` before the model is loaded for a run."""
    return guider.model_patcher.get_model_object("model_sampling").percent_to_sigma


def cfg_and_third(model, x, timestep, model_options, positive, negative, third, cfg: float, scale: float):
    """The host's CFG of positive and negative, plus scale * (positive - third), in one batch; without a negative forward if cfg is 1."""
    negative = _needed(negative, cfg, model_options)
    strong, null, weak = comfy.samplers.calc_cond_batch(model, [positive, negative, third], x, timestep, model_options)
    guided = _cfg(model, x, timestep, model_options, [positive, negative], [strong, null], cfg)
    return guided + scale * (strong - weak)


def cfg_of_two(model, x, timestep, model_options, positive, other, share: float, negative, cfg: float, seed=None):
    """The host's CFG with the positive prediction (1 - share) * positive + share * other, in one batch; at share 0 and 1 it is the host's CFG of one of them."""
    if share in (0.0, 1.0):
        return comfy.samplers.sampling_function(model, x, timestep, negative, other if share else positive, cfg, model_options=model_options, seed=seed)
    negative = _needed(negative, cfg, model_options)
    first, second, null = comfy.samplers.calc_cond_batch(model, [positive, other, negative], x, timestep, model_options)
    return _cfg(model, x, timestep, model_options, [positive, negative], [(1 - share) * first + share * second, null], cfg)


def _needed(negative, cfg: float, model_options: dict):
    """None if a guidance scale of 1 makes the negative prediction needless."""
    return None if math.isclose(cfg, 1.0) and not model_options.get("disable_cfg1_optimization", False) else negative


def _cfg(model, x, timestep, model_options, conds: list, out: list, cfg: float):
    """The host's CFG of two predictions, with the functions that other nodes put before and after it."""
    for function in model_options.get("sampler_pre_cfg_function", []):
        arguments = {"conds": conds, "conds_out": out, "cond_scale": cfg, "timestep": timestep, "input": x, "sigma": timestep}
        out = function({**arguments, "model": model, "model_options": model_options})
    return comfy.samplers.cfg_function(model, out[0], out[1], cfg, x, timestep, model_options=model_options, cond=conds[0], uncond=conds[1])


def core_input(node: str, name: str, tooltip: str | None = None):
    """A copy of the input `name` of core's `node`, with the type, default, limits, options and tooltip that the running host has.

    tooltip  used if the host has none
    """
    from comfy_api.latest import io

    import nodes

    types = nodes.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    input_type, options = (*{**types["required"], **types.get("optional", {})}[name], {})[:2]
    options = options if options.get("tooltip") else {**options, "tooltip": tooltip}
    options = {"default": options.get("default")} | options if not isinstance(input_type, list) else {"options": input_type} | options
    if isinstance(input_type, list):
        return io.Combo.Input(name, **options)
    if input_type in ("INT", "FLOAT"):
        return {"INT": io.Int, "FLOAT": io.Float}[input_type].Input(name, **options)
    options.pop("default")
    return {"CONDITIONING": io.Conditioning, "LATENT": io.Latent, "MODEL": io.Model}[input_type].Input(name, **options)


def has_curves() -> bool:
    """Does the host have its curve editor? ComfyUI has it since 0.24."""
    try:
        from comfy_api.input import CurveInput  # noqa: F401
    except ImportError:
        return False
    return True


def curve_function(curve):
    """The function x -> y of a curve (the host's object, or the raw points of its editor). Raises ValueError if the host has no curves."""
    if not has_curves():
        raise ValueError("This ComfyUI has no curves yet; it has them since 0.24. Set `omega_curve` to linear or cosine, or update ComfyUI.")
    from comfy_api.input import CurveInput

    return CurveInput.from_raw(curve).interp
