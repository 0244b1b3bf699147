"""The host's ModelPatcher: pristine weights, patched weights, and the layers that own them.

Clones of one patcher share ONE module, which holds the patches of the clone that was loaded last. So weights are never read from the module
alone: if a weight in the module is patched, the pristine one is in the backup that the clones share.
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

ModelPatcher = object  # the host's class, as a name for signatures

DIFFUSION = "diffusion_model."
BYPASS = "bypass_lora"  # the host's injection key for LoRAs in bypass mode
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


def share_module(a: ModelPatcher, b: ModelPatcher) -> bool:
    """Are both clones of one loaded model?"""
    return a.model is b.model


def architecture_name(patcher: ModelPatcher) -> str:
    """The host's name of the architecture: SD15, SDXL, Flux, ..."""
    return type(patcher.model.model_config).__name__


def weight_patches(patcher: ModelPatcher) -> dict[str, list[Patch]]:
    """Weight key -> its patches in order, for the keys of the diffusion model."""
    return {key: list(patches) for key, patches in patcher.patches.items() if key.startswith(DIFFUSION) and patches}


def has_bypass(patcher: ModelPatcher) -> bool:
    """Does the patcher have a LoRA in bypass mode, which injects modules instead of patching weights? Other injections do not count."""
    return bool(patcher.injections.get(BYPASS))


def injections(patcher: ModelPatcher) -> list[str]:
    """The keys of modules that packs inject into the model for the time of a run."""
    return [str(key) for key, some in patcher.injections.items() if some]


def weight_shapes(patcher: ModelPatcher) -> dict[str, torch.Size]:
    """Weight key -> shape of the diffusion model's pristine parameters (a loaded patch may have widened the one in the module)."""
    return {DIFFUSION + key: pristine(patcher, DIFFUSION + key).shape for key, _ in patcher.model.diffusion_model.named_parameters()}


def pristine(patcher: ModelPatcher, key: str) -> torch.Tensor:
    """The weight as it came from the file: in its stored form (maybe quantized), on any device. Do not write to it."""
    hooked, saved = patcher.hook_backup.get(key), patcher.backup.get(key)  # hooks patch on top of the other patches
    if saved is not None:
        return saved.weight
    return hooked[0] if hooked is not None else comfy.utils.get_attr(patcher.model, key)


def is_packed(patcher: ModelPatcher, key: str) -> bool:
    """Is the weight stored in a form that only another pack's loader can read (GGUF)? Then its `shape` is right, but its numbers are not weights."""
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
            f"A weight is stored in a packed form ({type(stored).__name__}, as in GGUF files) that only its own loader can read. "
            "Load the model from a .safetensors file."
        )
    return stored.as_subclass(torch.Tensor)


def patched(patcher: ModelPatcher, key: str, patches: list[Patch], device: torch.device, start: torch.Tensor | None = None) -> torch.Tensor:
    """The weight `key` with `patches` merged by the host's own function, float32 on `device`. Raises ValueError for a packed weight.

    start  replaces the pristine weight
    """
    if start is None:
        start = _values(pristine(patcher, key)).to(device=device, dtype=torch.float32, copy=True)
    return comfy.lora.calculate_weight(patches, start, key) if patches else start


def storage_dtype(patcher: ModelPatcher, key: str) -> torch.dtype:
    """The dtype for storing another value of the weight `key`: its own if that has at least 16 bits, else the dtype of the activations."""
    stored = pristine(patcher, key)
    plain = not isinstance(stored, QuantizedTensor) and stored.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return stored.dtype if plain else patcher.model.get_dtype_inference()


def compute_dtype(patcher: ModelPatcher) -> torch.dtype:
    """The dtype of the activations."""
    return patcher.model.get_dtype_inference()


def without_injections(patcher: ModelPatcher):
    """A context in which other packs' injected modules are out of the model, because they change the paths of the model's own modules.

    The clone that was loaded last holds the injections until another one is loaded; it need not be `patcher`.
    """
    loaded = [entry.model for entry in comfy.model_management.current_loaded_models if entry.model is not None]
    return next((clone for clone in loaded if clone.model is patcher.model and clone.is_injected), patcher).use_ejected()


def weight_owner(patcher: ModelPatcher, key: str) -> tuple[torch.nn.Module, str]:
    """The layer that owns the weight `key`, and the parameter's name in it."""
    path, _, name = key.rpartition(".")
    return comfy.utils.get_attr(patcher.model, path), name


def is_rowwise(layer: torch.nn.Module) -> bool:
    """Does the layer compute each row of its input separately, in `forward`, from a weight and a bias only?"""
    known = isinstance(layer, KNOWN_LAYERS) or (isinstance(layer, comfy.ops.CastWeightBiasOp) and type(layer).__name__ == "Linear")
    return known and not any(True for _ in layer.children())


def has_own_forward(layer: torch.nn.Module, forward) -> bool:
    """Is `forward` the method of the layer's class, not a replacement?"""
    return getattr(forward, "__func__", None) is type(layer).forward


def is_direct(layer: torch.nn.Module, forward, x: torch.Tensor) -> bool:
    """May the layer's weight multiply `x` directly, without a cast, patch or transfer?

    forward  the layer's forward before ours replaced it; it must be the host's own
    """
    weight, bias, cls = layer.weight, layer.bias, type(layer)
    host = next((known for known in (comfy.ops.disable_weight_init.Linear, comfy.ops.disable_weight_init.Conv2d) if isinstance(layer, known)), None)
    return (
        host is not None
        and getattr(forward, "__func__", None) is cls.forward is host.forward
        and cls.forward_comfy_cast_weights is host.forward_comfy_cast_weights
        and type(x) is torch.Tensor
        and not torch.is_autocast_enabled(x.device.type)  # autocast would cast the layer's input, but not an in-place product
        and type(weight) in (torch.Tensor, torch.nn.Parameter)
        and all(value.dtype == x.dtype and value.device == x.device for value in (weight, bias) if value is not None)
        and not (layer.weight_function or layer.bias_function)
        and not (hasattr(layer, "_v") or getattr(layer, "weight_lowvram_function", None) or getattr(layer, "bias_lowvram_function", None))
    )


def heed_interrupt() -> None:
    """Raise the host's interrupt if one is pending, as every layer of the host does first."""
    comfy.ops.run_every_op()


def twin(layer: torch.nn.Module, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.nn.Module:
    """A layer like `layer` with other values of weight and bias, and without the host's patches, quantization and offloading."""
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


def dequantized(x: torch.Tensor) -> torch.Tensor:
    """An activation as an ordinary tensor; an earlier layer may have quantized it."""
    return x.dequantize() if isinstance(x, QuantizedTensor) else x


def wrap(patcher: ModelPatcher, key: str, outermost: bool = False, **wrappers) -> None:
    """Put `wrappers` (named as in the host, in lower case: sampler_sample, ...) onto a clone. They replace earlier ones of the same key.

    outermost  around all that are there, instead of inside them
    """
    for name, wrapper in wrappers.items():
        wrapper_type = getattr(WrappersMP, name.upper())
        patcher.remove_wrappers_with_key(wrapper_type, key)
        patcher.add_wrapper_with_key(wrapper_type, key, wrapper)
        if outermost:
            there = patcher.wrappers[wrapper_type]
            patcher.wrappers[wrapper_type] = {key: there[key], **there}


def add_callbacks(patcher: ModelPatcher, key: str, **callbacks) -> None:
    """Put `callbacks` (named as in the host, in lower case: on_cleanup, ...) onto a clone. They replace earlier ones of the same key."""
    for name, callback in callbacks.items():
        call_type = getattr(CallbacksMP, name.upper())
        patcher.remove_callbacks_with_key(call_type, key)
        patcher.add_callback_with_key(call_type, key, callback)


def has_wrappers(patcher: ModelPatcher, key: str) -> bool:
    """Does `patcher` have wrappers under `key`?"""
    return any(wrappers.get(key) for wrappers in patcher.wrappers.values())


def wrapper(patcher: ModelPatcher, key: str, name: str):
    """The wrapper that `wrap` has put onto `patcher` under `key`, or None."""
    return next(iter(patcher.wrappers.get(getattr(WrappersMP, name.upper()), {}).get(key, ())), None)


def unwrap(patcher: ModelPatcher, key: str) -> None:
    """Remove all wrappers and callbacks of `key` from a clone."""
    for wrapper_type in list(patcher.wrappers):
        patcher.remove_wrappers_with_key(wrapper_type, key)
    for call_type in list(patcher.callbacks):
        patcher.remove_callbacks_with_key(call_type, key)


def network(model) -> torch.nn.Module:
    """The network inside the host's model."""
    return model.diffusion_model


def same_weight(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Are two stored weights equal, on any devices and in any dtypes? Packed weights are equal if all their bytes are."""
    if _is_packed(a) or _is_packed(b):
        a, b = a.as_subclass(torch.Tensor), b.as_subclass(torch.Tensor)
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b.to(a.device))
    a, b = _values(a), _values(b)
    return a.shape == b.shape and torch.equal(a, b.to(device=a.device, dtype=a.dtype))


def interpolated_clone(base: ModelPatcher, tuned: ModelPatcher, keys: list[str], omega: float) -> ModelPatcher:
    """A clone of `base` with the weights `keys` at omega * tuned + (1 - omega) * base. The host merges them when it loads the clone.

    A weight of `tuned` may have more input channels than that of `base` (instruction editing): the base's weight is padded with zeros.
    """
    clone = base.clone()
    known = tuned.get_key_patches(DIFFUSION)
    base_shapes = weight_shapes(base)
    for key in keys:
        shape = known[key][0][0].shape
        if shape != base_shapes[key]:
            clone.add_patches({key: ("diff", (torch.zeros(shape), {"pad_weight": True}))})
        if omega > 0:
            clone.add_patches({key: known[key]}, omega, 1.0 - omega)
    return clone


def load_device(patcher: ModelPatcher) -> torch.device:
    """The device that the host loads the model to."""
    return patcher.load_device


@contextmanager
def sampling_settings_of(source: ModelPatcher, second: ModelPatcher):
    """A context in which `second` (another module, already loaded) samples with the settings of `source`.

    The settings are the noise schedule, the compute dtype and the hooks of conditionings.
    """
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
