"""The host's sampling: its KSampler's own function, its guider's base class, and what a sampling run tells to wrappers."""

from __future__ import annotations

import math
from typing import Any

import comfy.samplers

CFGGuider: Any = comfy.samplers.CFGGuider  # takes any `types.Model`; its own signature asks for the host's class
SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS: list[str] = comfy.samplers.KSampler.SCHEDULERS

Conditions = list  # of dicts, one entry each, as the host's guiders hold them while sampling


def ksample(*args, **kwargs) -> dict:
    """Core KSampler's own function, whole: noise, preview, progress bar, masks, batch index. Gives the LATENT."""
    import nodes  # the host's top-level module

    return nodes.common_ksampler(*args, **kwargs)[0]


def mark_sides(guider, key: str, sides) -> bool:
    """Write under `key` into each condition of a run the name of the guider's list that holds it. True if a list of `sides` has conditions.

    The host and other packs copy conditions as dicts, marks included. The run's own lists are marked in place: the guider keeps what the user gave.
    """
    for name, conditions in guider.conds.items():
        for i, condition in enumerate(conditions or ()):
            conditions[i] = {**condition, key: name}
    return any(guider.conds.get(side) for side in sides)


def sides_of(conditions: Conditions | None, key: str) -> set:
    """The marks of a list of conditions; None among them for a condition that no guider's list held."""
    return {condition.get(key) for condition in conditions or ()}


def is_marked(conditions: Conditions | None, key: str) -> bool:
    """Does a list hold a condition of the guider?"""
    return bool(sides_of(conditions, key) - {None})


def add_wrappers(model_options: dict, key: str, **wrappers) -> None:
    """Put `wrappers` (by the host's names in lower case) into the options of one run, inside all that are there."""
    for name, wrapper in wrappers.items():
        known = model_options.setdefault("transformer_options", {}).setdefault("wrappers", {}).setdefault(name, {})
        known.pop(key, None)  # a run inside a run
        known[key] = [wrapper]


def has_weight_hooks(guider) -> bool:
    """Do conditionings of this run change weights by hooks?"""
    return any("hooks" in condition for conditions in guider.conds.values() for condition in conditions or ())


def percent_to_sigma(guider):
    """The model's percent -> sigma, 0 at pure noise."""
    return guider.inner_model.model_sampling.percent_to_sigma


def cfg_and_third(model, x, timestep, model_options, positive, negative, third, cfg: float, scale: float):
    """The host's CFG of positive and negative, plus scale * (positive - third): one batch, and no negative forward where cfg is 1."""
    if math.isclose(cfg, 1.0) and not model_options.get("disable_cfg1_optimization", False):
        negative = None
    conds = [positive, negative, third]
    strong, null, weak = comfy.samplers.calc_cond_batch(model, conds, x, timestep, model_options)
    out = [strong, null]
    for function in model_options.get("sampler_pre_cfg_function", []):
        arguments = {"conds": conds[:2], "conds_out": out, "cond_scale": cfg, "timestep": timestep, "input": x, "sigma": timestep}
        out = function({**arguments, "model": model, "model_options": model_options})
    guided = comfy.samplers.cfg_function(model, out[0], out[1], cfg, x, timestep, model_options=model_options, cond=positive, uncond=negative)
    return guided + scale * (strong - weak)


def core_input(node: str, name: str, tooltip: str | None = None):
    """The input `name` of a node of core, as an input of ours: same type, default, limits, options and tooltip, whatever this host says they are.

    tooltip  where this host has none
    """
    from comfy_api.latest import io

    import nodes

    types = nodes.NODE_CLASS_MAPPINGS[node].INPUT_TYPES()
    kind, options = (*{**types["required"], **types.get("optional", {})}[name], {})[:2]
    options = options if options.get("tooltip") else {**options, "tooltip": tooltip}
    options = {"default": options.get("default")} | options if not isinstance(kind, list) else {"options": kind} | options
    if isinstance(kind, list):
        return io.Combo.Input(name, **options)
    if kind in ("INT", "FLOAT"):
        return {"INT": io.Int, "FLOAT": io.Float}[kind].Input(name, **options)
    options.pop("default")
    return {"CONDITIONING": io.Conditioning, "LATENT": io.Latent, "MODEL": io.Model}[kind].Input(name, **options)


def has_curves() -> bool:
    """Does the host have curves that are drawn? They came with 0.24."""
    try:
        from comfy_api.input import CurveInput  # noqa: F401
    except ImportError:
        return False
    return True


def curve_function(curve):
    """The host's curve (an object, or the raw points of its editor) as x -> y. ValueError where the host has no curves."""
    if not has_curves():
        raise ValueError("This ComfyUI has no curves yet; they came with 0.24. Set `omega_curve` to linear or cosine, or update ComfyUI.")
    from comfy_api.input import CurveInput

    return CurveInput.from_raw(curve).interp
