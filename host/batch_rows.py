"""Batch rows inside the host's networks: which layers get one row per row of the batch, and which code of a run may change that.

`BATCH_FIRST` (from `families`) is a promise about the host's code, held by tests that compare every layer's input in a batch with its input
in two forwards. The rows are unknown in a network that is not listed or that has code of other packs inside: the caller then predicts each
side in a forward of its own.
"""

from __future__ import annotations

import os
import re
import types
from pathlib import Path

import comfy.ops
import torch

from . import families, forwards, text_rows
from .patcher import KNOWN_LAYERS

# Class of the network -> pattern for the paths of layers whose input is not one row per row of the batch; "" = no such layer.
BATCH_FIRST: dict[str, str] = {row.network: row.mixed_rows for row in families.FAMILIES if row.mixed_rows != families.UNDECLARED}
# The host's own nodes that cut images into tiles, so that tiles become rows.
REARRANGING = ("comfy_extras.nodes_hypertile",)
# The host names the modules of its own extra nodes by their paths, as it does for packs.
_EXTRAS = f"{Path(comfy.ops.__file__).resolve().parents[1] / 'comfy_extras'}{os.sep}"
_HOST = ("comfy.", "comfy_extras.", "comfy_api.", "torch.", "einops.", "contextlib.")
_FUNCTIONS = (types.FunctionType, types.MethodType)
_CODE = ("patches", "patches_replace", "block_modifiers", "block_inner_modifiers")  # lists and dicts of functions that run inside the network


def undeclared(network: torch.nn.Module, paths) -> str | None:
    """Why the batch rows of the layers `paths` (relative to the network) are unknown, as a clause for the log; None if they are known."""
    name = f"{type(network).__module__}.{type(network).__qualname__}"
    if name not in BATCH_FIRST:
        return f"the order of the rows inside {type(network).__name__} is not declared"
    pattern = BATCH_FIRST[name]
    other = next((path for path in paths if pattern and re.search(pattern, path)), None)
    return other and f"{type(network).__name__} gives {other} an input whose rows are not those of the batch"


def foreign_code(network: torch.nn.Module) -> str | None:
    """A clause that names the first part of `network` with code from outside the host and us (injected modules, replaced functions), or None."""
    seen = set()
    for path, part in network.named_modules():
        cls = type(part)
        known_layer = isinstance(part, KNOWN_LAYERS)  # a pack's subclass of an ordinary layer keeps the rows
        if cls not in seen and not known_layer:
            seen.add(cls)
            if not _of_host(cls):
                return f"{_pack_name(cls)} put its own module into the model ({path or cls.__name__})"
            if any(isinstance(value, types.FunctionType) and not _of_host(value) for value in vars(cls).values()):
                return f"another node replaced a function of {cls.__name__}"
        if part._forward_hooks or part._forward_pre_hooks:
            return f"another node has a hook on {path or cls.__name__}"
        for name, value in vars(part).items():
            replaces = hasattr(cls, name) and callable(value) and not isinstance(value, type)  # also a partial or another callable object
            if not replaces and not isinstance(value, (*_FUNCTIONS, forwards.Replaced)):
                continue
            value = forwards.host_forward(value)
            if getattr(value, "__func__", value) is not getattr(cls, name, None) and not _of_host(value):
                return f"another node replaced {name!r} of {path or cls.__name__}"
    return None


def foreign_options(model_options: dict, ours: str) -> str | None:
    """A clause that names the first function of another pack that may rearrange rows in this prediction, or None.

    ours  the key of the pack's own wrappers
    """
    wrapper = model_options.get("model_function_wrapper")
    if wrapper is not None and not _of_host(wrapper):
        return f"{_pack_name(wrapper)} wraps the model's function"
    return foreign_patches(model_options.get("transformer_options", {}), ours)


def foreign_patches(transformer_options: dict, ours: str) -> str | None:
    """`foreign_options` for the transformer options of one forward."""
    wrappers = transformer_options.get("wrappers", {})
    functions = [
        f for wrapped in ("apply_model", "diffusion_model") for key, some in wrappers.get(wrapped, {}).items() if key not in (ours, text_rows.KEY) for f in some
    ]
    keys = list(wrappers.get("calc_cond_batch", {}))
    functions += [f for key in keys[keys.index(ours) + 1 :] for f in wrappers["calc_cond_batch"][key]] if ours in keys else []
    for name in _CODE:
        functions += _functions(transformer_options.get(name))
    other = next((f for f in functions if not _of_host(f) or _origin(f).startswith(REARRANGING)), None)
    return other and f"{_pack_name(other)} patches the inside of the model"


def _functions(tree):
    """All callables in nested lists, tuples and dicts."""
    if isinstance(tree, dict):
        return [f for value in tree.values() for f in _functions(value)]
    if isinstance(tree, (list, tuple)):
        return [f for value in tree for f in _functions(value)]
    return [tree] if callable(tree) and not isinstance(tree, type) else []


def _origin(thing) -> str:
    """The module of a class, a function or an object with `__call__`: where a function's code was written, whatever `functools.wraps` copied onto it."""
    function = getattr(thing, "__func__", thing)
    if isinstance(function, types.FunctionType):
        name = function.__globals__.get("__name__", "")
    else:
        name = getattr(thing, "__module__", None) or type(thing).__module__
    return f"comfy_extras.{name.removeprefix(_EXTRAS)}" if name.startswith(_EXTRAS) else name


def _pack_name(thing) -> str:
    """The folder of the pack that a function or class comes from, or its module outside of packs."""
    before, folder, rest = _origin(thing).replace("\\", "/").rpartition("custom_nodes/")
    return rest.split(".")[0] if folder else before or rest


def _of_host(thing) -> bool:
    """Are a function and all functions that it wraps (`__wrapped__`) the host's?"""
    while thing is not None:
        if not f"{_origin(thing)}.".startswith(_HOST):
            return False
        thing = getattr(thing, "__wrapped__", None)
    return True
