"""The host's Model: weights as they were loaded, weights as a patcher means them, and the layers that own them.

Clones of one patcher share ONE module. What is patched into the module at the moment belongs to the clone that was loaded last, so
weights are never read from the module alone: the pristine ones are in the patchers' shared backup where the module holds patched ones.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager

import comfy.lora
import comfy.model_management
import comfy.ops
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from comfy.quant_ops import QuantizedTensor

from .adapters import Patch
from .types import Model

DIFFUSION = "diffusion_model."
BYPASS = "bypass_lora"  # the key under which the host injects LoRAs in bypass mode
KNOWN_LAYERS = (
    torch.nn.Linear,
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    torch.nn.GroupNorm,
    torch.nn.LayerNorm,
    torch.nn.RMSNorm,
    torch.nn.Embedding,
)


def share_module(a: Model, b: Model) -> bool:
    """Are the two clones of one loaded model?"""
    return a.model is b.model


def family(patcher: Model) -> str:
    """The host's name of the architecture: SD15, SDXL, Flux ..."""
    return type(patcher.model.model_config).__name__


def weight_patches(patcher: Model) -> dict[str, list[Patch]]:
    """Weight key -> the patches that the patcher puts on it, in order. Keys of the diffusion model only."""
    return {key: list(patches) for key, patches in patcher.patches.items() if key.startswith(DIFFUSION) and patches}


def has_bypass(patcher: Model) -> bool:
    """Does the patcher carry a LoRA in bypass mode, which changes layers by injection instead of by patches? Other injections do not count."""
    return bool(patcher.injections.get(BYPASS))


def injections(patcher: Model) -> list[str]:
    """The names under which packs put modules into the model for the time of a run."""
    return [str(key) for key, some in patcher.injections.items() if some]


def weight_shapes(patcher: Model) -> dict[str, torch.Size]:
    """Weight key -> shape, of the diffusion model's parameters as they came from the file (a loaded patch may have widened one)."""
    return {DIFFUSION + key: pristine(patcher, DIFFUSION + key).shape for key, _ in patcher.model.diffusion_model.named_parameters()}


def pristine(patcher: Model, key: str) -> torch.Tensor:
    """The weight as it came from the file: as stored (maybe quantised), on any device. Not to be written to."""
    hooked, saved = patcher.hook_backup.get(key), patcher.backup.get(key)
    if saved is not None:
        return saved.weight
    return hooked[0] if hooked is not None else comfy.utils.get_attr(patcher.model, key)


def is_packed(patcher: Model, key: str) -> bool:
    """Is the weight stored in a form that only the loader of another pack can read (GGUF)? Its `shape` is true, its numbers are not weights."""
    return _is_packed(pristine(patcher, key))


def _is_packed(stored: torch.Tensor) -> bool:
    if isinstance(stored, QuantizedTensor) or type(stored) in (torch.Tensor, torch.nn.Parameter):
        return False
    return not stored.is_floating_point() or torch.Tensor.size(stored) != stored.shape


def _values(stored: torch.Tensor) -> torch.Tensor:
    """The numbers of a stored weight as an ordinary tensor. Raises ValueError for a packed one."""
    if isinstance(stored, QuantizedTensor):
        return stored.dequantize()
    if _is_packed(stored):
        raise ValueError(
            f"A weight is stored in a packed form ({type(stored).__name__}, as GGUF files have it) that only its own loader can read: load the model from a .safetensors file."
        )
    return stored.as_subclass(torch.Tensor)


def patched(patcher: Model, key: str, patches: list[Patch], device: torch.device, start: torch.Tensor | None = None) -> torch.Tensor:
    """The weight `key` with `patches` as the host would merge them, in float32 on `device`; from `start` instead of the file's weight if given.

    Raises ValueError for a packed weight.
    """
    if start is None:
        start = _values(pristine(patcher, key)).to(device=device, dtype=torch.float32, copy=True)
    return comfy.lora.calculate_weight(patches, start, key) if patches else start


def storage_dtype(patcher: Model, key: str) -> torch.dtype:
    """The dtype for another value of the weight `key`: its own, or the one it is computed in where it is stored in less than 16 bits."""
    stored = pristine(patcher, key)
    plain = not isinstance(stored, QuantizedTensor) and stored.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return stored.dtype if plain else patcher.model.get_dtype_inference()


def compute_dtype(patcher: Model) -> torch.dtype:
    """The dtype of the activations."""
    return patcher.model.get_dtype_inference()


def without_injections(patcher: Model):
    """A context in which the modules that other packs inject are out of the model: they move the places, and so the paths, of the model's own.

    The clone that was loaded last holds them, until another one is loaded; it need not be `patcher`.
    """
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models if entry.model is not None]
    return next((one for one in loaded if one.model is patcher.model and one.is_injected), patcher).use_ejected()


def owner(patcher: Model, key: str) -> tuple[torch.nn.Module, str]:
    """The layer that owns the weight `key`, and the parameter's name in it."""
    path, _, name = key.rpartition(".")
    return comfy.utils.get_attr(patcher.model, path), name


def is_rowwise(layer: torch.nn.Module) -> bool:
    """Does the layer work on each row of its input alone, by `forward`, with nothing but a weight and a bias?"""
    known = isinstance(layer, KNOWN_LAYERS) or (isinstance(layer, comfy.ops.CastWeightBiasOp) and type(layer).__name__ == "Linear")
    return known and not any(True for _ in layer.children())


def has_own_forward(layer: torch.nn.Module, forward) -> bool:
    """Is `forward` what the layer's class computes, not a function that was put over it?"""
    return getattr(forward, "__func__", None) is type(layer).forward


def is_direct(layer: torch.nn.Module, forward, x: torch.Tensor) -> bool:
    """May the layer's weight be used on `x` as it stands? Then its `forward` (as it was before ours) is the host's own, and needs no cast, patch or transfer."""
    weight, bias, kind = layer.weight, layer.bias, type(layer)
    host = next((known for known in (comfy.ops.disable_weight_init.Linear, comfy.ops.disable_weight_init.Conv2d) if isinstance(layer, known)), None)
    return (
        host is not None
        and getattr(forward, "__func__", None) is kind.forward is host.forward
        and kind.forward_comfy_cast_weights is host.forward_comfy_cast_weights
        and type(x) is torch.Tensor
        and not torch.is_autocast_enabled(x.device.type)  # it casts what a layer is given, but not a product into memory of ours
        and type(weight) in (torch.Tensor, torch.nn.Parameter)
        and all(value.dtype == x.dtype and value.device == x.device for value in (weight, bias) if value is not None)
        and not (layer.weight_function or layer.bias_function)
        and not (hasattr(layer, "_v") or getattr(layer, "weight_lowvram_function", None) or getattr(layer, "bias_lowvram_function", None))
    )


def heed_interrupt() -> None:
    """What every layer of the host does first."""
    comfy.ops.run_every_op()


def twin(layer: torch.nn.Module, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.nn.Module:
    """A layer that computes like `layer`, with other values of weight and bias and none of the host's patches, quantisation and offloading."""
    other = copy.copy(layer)
    other._parameters = dict(layer._parameters)
    for name, value in (("weight", weight), ("bias", bias)):
        if name in other._parameters:
            other._parameters[name] = None if value is None else torch.nn.Parameter(value, requires_grad=False)
    for name in ("forward", "_v", "_v_weight", "_v_bias", "_prefetch", "weight_lowvram_function", "bias_lowvram_function"):
        other.__dict__.pop(name, None)
    other.weight_function, other.bias_function, other.comfy_cast_weights = [], [], True
    if hasattr(other, "layout_type"):
        other.layout_type = other.quant_format = None
    return other


def plain(x: torch.Tensor) -> torch.Tensor:
    """An activation that a layer before may have quantised already, as an ordinary tensor."""
    return x.dequantize() if isinstance(x, QuantizedTensor) else x


def wrap(patcher: Model, key: str, **wrappers) -> None:
    """Put `wrappers` (by the host's names in lower case, such as sampler_sample) onto a clone, in place of earlier ones of the same key."""
    for name, wrapper in wrappers.items():
        kind = getattr(WrappersMP, name.upper())
        patcher.remove_wrappers_with_key(kind, key)
        patcher.add_wrapper_with_key(kind, key, wrapper)


def call_back(patcher: Model, key: str, **callbacks) -> None:
    """Have a clone call `callbacks` (by the host's names in lower case, such as on_cleanup), in place of earlier ones of the same key."""
    for name, callback in callbacks.items():
        kind = getattr(CallbacksMP, name.upper())
        patcher.remove_callbacks_with_key(kind, key)
        patcher.add_callback_with_key(kind, key, callback)


def is_wrapped(patcher: Model, key: str) -> bool:
    """Does `patcher` have wrappers under `key`?"""
    return any(wrappers.get(key) for wrappers in patcher.wrappers.values())


def unwrap(patcher: Model, key: str) -> None:
    """Take all wrappers and callbacks of `key` off a clone."""
    for kind in list(patcher.wrappers):
        patcher.remove_wrappers_with_key(kind, key)
    for kind in list(patcher.callbacks):
        patcher.remove_callbacks_with_key(kind, key)


def network(model) -> torch.nn.Module:
    """The network inside the host's model."""
    return model.diffusion_model


def same_weight(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Are two stored weights equal, whatever their devices and dtypes? Packed ones are equal where all bytes are."""
    if _is_packed(a) or _is_packed(b):
        a, b = a.as_subclass(torch.Tensor), b.as_subclass(torch.Tensor)
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b.to(a.device))
    a, b = _values(a), _values(b)
    return a.shape == b.shape and torch.equal(a, b.to(device=a.device, dtype=a.dtype))


def interpolated_clone(base: Model, tuned: Model, keys: list[str], omega: float) -> Model:
    """A clone of `base` whose weights `keys` are omega * tuned + (1 - omega) * base, merged by the host when it loads it.

    A weight of `tuned` may have more input channels than that of `base` (instruction editing): the base's are padded with zeros.
    """
    clone = base.clone()
    known = tuned.get_key_patches(DIFFUSION)
    mine = weight_shapes(base)
    for key in keys:
        shape = known[key][0][0].shape
        if shape != mine[key]:
            clone.add_patches({key: ("diff", (torch.zeros(shape), {"pad_weight": True}))})
        if omega > 0:
            clone.add_patches({key: known[key]}, omega, 1.0 - omega)
    return clone


def load_device(patcher: Model) -> torch.device:
    return patcher.load_device


@contextmanager
def following(source: Model, second: Model):
    """While open, `second` (another module, already loaded) samples by the settings of `source`: noise schedule, compute dtype, conditioning hooks."""
    hooks = second.hook_patches, second.hook_mode
    second.hook_patches = {ref: {key: list(patches) for key, patches in by_key.items()} for ref, by_key in source.hook_patches.items()}
    second.hook_mode = source.hook_mode
    names = [name for name in source.object_patches if not name.startswith(DIFFUSION)]
    settings = {name: comfy.utils.get_attr(second.model, name) for name in names}
    try:
        for name in names:
            comfy.utils.set_attr(second.model, name, comfy.utils.get_attr(source.model, name))
        second.pre_run()
        yield
    finally:
        second.cleanup()
        for name, value in settings.items():
            comfy.utils.set_attr(second.model, name, value)
        second.hook_patches, second.hook_mode = hooks
