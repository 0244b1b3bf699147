"""Which of the host's networks hand their layers one row for each row of the batch, and what on a run may change that.

`BATCH_FIRST` (from `families`) is a promise about code of the host, held by tests that compare the input of every layer in a batch with its input in two forwards.
A network that is not in it is not known, nor is one with code of other packs inside: the caller then runs each side of a prediction alone.
"""

from __future__ import annotations

import os
import re
import types
from pathlib import Path

import comfy.ops
import torch

from . import families
from .patcher import KNOWN_LAYERS

# Class of the network -> the layers (a pattern for their paths) that see something else than the rows of the batch; "" = all see them.
BATCH_FIRST: dict[str, str] = {row.network: row.mixed_rows for row in families.FAMILIES if row.mixed_rows != families.UNDECLARED}
# Nodes of the host itself that cut images into tiles, which then are rows.
REARRANGING = ("comfy_extras.nodes_hypertile",)
# The host loads the files of its own nodes under their paths, as it does with packs.
_EXTRAS = f"{Path(comfy.ops.__file__).resolve().parents[1] / 'comfy_extras'}{os.sep}"
_HOST = ("comfy.", "comfy_extras.", "comfy_api.", "torch.", "einops.")
_FUNCTIONS = (types.FunctionType, types.MethodType)
_CODE = ("patches", "patches_replace", "block_modifiers", "block_inner_modifiers")  # lists and dicts of functions that run inside the network


def undeclared(network: torch.nn.Module, paths) -> str | None:
    """Why the rows of the layers `paths` (relative to the network) cannot be told apart in a batch, or None where they can."""
    name = f"{type(network).__module__}.{type(network).__qualname__}"
    if name not in BATCH_FIRST:
        return f"the order of the rows inside {type(network).__name__} is not declared"
    pattern = BATCH_FIRST[name]
    other = next((path for path in paths if pattern and re.search(pattern, path)), None)
    return other and f"{type(network).__name__} gives {other} something else than the rows of a batch"


def foreign_code(network: torch.nn.Module, ours: type) -> str | None:
    """Names the first part of `network` that runs code from outside of the host (injected modules, replaced functions), or None.

    ours  the class of the forwards that belong to us
    """
    seen = set()
    for path, part in network.named_modules():
        kind = type(part)
        known_layer = isinstance(part, KNOWN_LAYERS)  # a pack's own class of an ordinary layer keeps the rows
        if kind not in seen and not known_layer:
            seen.add(kind)
            if not _of_host(kind):
                return f"{_name(kind)} put its own module into the model ({path or kind.__name__})"
            if any(isinstance(value, types.FunctionType) and not _of_host(value) for value in vars(kind).values()):
                return f"another node replaced a function of {kind.__name__}"
        if part._forward_hooks or part._forward_pre_hooks:
            return f"another node has a hook on {path or kind.__name__}"
        for name, value in vars(part).items():
            in_place = hasattr(kind, name) and callable(value) and not isinstance(value, type)  # a partial or an object that stands for a method
            if not in_place and not isinstance(value, (*_FUNCTIONS, ours)):
                continue
            value = value.below() if isinstance(value, ours) else value
            if getattr(value, "__func__", value) is not getattr(kind, name, None) and not _of_host(value):
                return f"another node replaced {name!r} of {path or kind.__name__}"
    return None


def foreign_options(model_options: dict, ours: str) -> str | None:
    """Names the first function of another pack that may rearrange rows in this prediction, or None. `ours` is the key of our own wrappers."""
    wrapper = model_options.get("model_function_wrapper")
    if wrapper is not None and not _of_host(wrapper):
        return f"{_name(wrapper)} wraps the model's function"
    return foreign_patches(model_options.get("transformer_options", {}), ours)


def foreign_patches(transformer_options: dict, ours: str) -> str | None:
    """The same for what the host hands to one forward."""
    wrappers = transformer_options.get("wrappers", {})
    found = [f for kind in ("apply_model", "diffusion_model") for key, some in wrappers.get(kind, {}).items() if key != ours for f in some]
    inner = list(wrappers.get("calc_cond_batch", {}))
    found += [f for key in inner[inner.index(ours) + 1 :] for f in wrappers["calc_cond_batch"][key]] if ours in inner else []
    for name in _CODE:
        found += _functions(transformer_options.get(name))
    other = next((f for f in found if not _of_host(f) or _origin(f).startswith(REARRANGING)), None)
    return other and f"{_name(other)} patches the inside of the model"


def _functions(tree):
    """All callables in nested lists, tuples and dicts."""
    if isinstance(tree, dict):
        return [f for value in tree.values() for f in _functions(value)]
    if isinstance(tree, (list, tuple)):
        return [f for value in tree for f in _functions(value)]
    return [tree] if callable(tree) and not isinstance(tree, type) else []


def _origin(thing) -> str:
    """The module that a class, a function or an object with `__call__` comes from."""
    name = getattr(thing, "__module__", None) or type(thing).__module__
    return f"comfy_extras.{name.removeprefix(_EXTRAS)}" if name.startswith(_EXTRAS) else name


def _name(thing) -> str:
    """Where a function or class comes from, as an artist knows it: the folder of its pack, or the module."""
    before, folder, rest = _origin(thing).replace("\\", "/").rpartition("custom_nodes/")
    return rest.split(".")[0] if folder else before or rest


def _of_host(thing) -> bool:
    return f"{_origin(thing)}.".startswith(_HOST)
