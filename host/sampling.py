"""The host's sampling: its KSampler's own function, its guider's base class, and what a sampling run tells to wrappers."""

from __future__ import annotations

import math

import comfy.samplers

CFGGuider = comfy.samplers.CFGGuider
SAMPLERS: list[str] = comfy.samplers.KSampler.SAMPLERS
SCHEDULERS: list[str] = comfy.samplers.KSampler.SCHEDULERS

Conditions = list  # of dicts, one entry each, as the host's guiders hold them while sampling


def ksample(*args, **kwargs) -> dict:
    """Core KSampler's own function, whole: noise, preview, progress bar, masks, batch index. Gives the LATENT."""
    import nodes  # the host's top-level module

    return nodes.common_ksampler(*args, **kwargs)[0]


def own_ids(guider, name: str) -> set:
    """The identities of the conditions that the user gave to `guider` under `name`. The host adds copies of the other side's to the lists later."""
    conditions = guider.original_conds.get(name) or (guider.conds.get(name) or [])[:1]
    return {condition["uuid"] for condition in conditions if "uuid" in condition}


def first_id(conditions: Conditions | None):
    return conditions[0].get("uuid") if conditions else None


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
