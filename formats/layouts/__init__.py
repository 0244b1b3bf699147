"""The layouts in which other tools keep what was learned, and the conversions between them.

comfyui           core's names (`diffusion_model.<layer>.lora_up.weight`, `text_encoders.<encoder>.<layer>...`): what training gives
kohya             `lora_unet_<layer>.lora_up.weight`, `lora_te_<layer>...`: kohya's tools, A1111, core, diffusers
diffusers         PEFT's names (`unet.<layer>.lora_A.weight`, `text_encoder.<layer>...`), for diffusers and PEFT
custom_diffusion  `<layer>.processor.to_k_custom_diffusion.weight`: whole K and V weights, as diffusers' and ClassDiffusion's authors save them

All conversions are pure: the names of a model's layers come in as `LayerNames`, its weights as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from . import custom_diffusion, kohya, peft, reading
from .names import LayerNames, Loaded, split
from .peft_config import KEY as ADAPTER_METADATA
from .reading import is_wrapped

LAYOUTS = ("comfyui", "kohya", "diffusers")  # those that an artist may choose to write
State = dict[str, torch.Tensor]
BaseWeight = Callable[[str], torch.Tensor]

__all__ = ["ADAPTER_METADATA", "LAYOUTS", "BaseWeight", "LayerNames", "Loaded", "State", "from_core", "is_wrapped", "to_core"]


def from_core(state: Mapping[str, torch.Tensor], layout: str, names: LayerNames | None, base: BaseWeight | None = None) -> tuple[str, State, dict[str, str]]:
    """(the layout written, its state, its metadata) of core-named differences.

    In `diffusers`, cross-attention K and V learned in full are written as whole weights (`custom_diffusion`), all else as PEFT's LoRA.

    base   core layer -> the base model's weight, float32; only `custom_diffusion` needs it
    ValueError when the layout has no place for something that was learned.
    """
    if layout == "comfyui":
        return layout, dict(state), {}
    if layout not in LAYOUTS:
        raise ValueError(f"There is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}.")
    if names is None:
        raise ValueError(
            f"The layout {layout!r} names layers as the trained model has them. Connect that MODEL to Save Concept's input 'model', or choose 'comfyui'."
        )
    if layout == "kohya":
        return layout, kohya.from_core(state, names), {}
    if any(split(key)[1] == "diff" for key in state):
        return "custom_diffusion", custom_diffusion.from_core(state, names, base), {}
    return layout, *peft.from_core(state, names)


def to_core(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str], names: LayerNames, base: BaseWeight | None = None) -> Loaded:
    """The state under core's names. Keys of layers that `names` does not know stay as they are: core's loader reads many more.

    ValueError where the file needs more than core can apply, or does not fit the model.
    """
    if any("_custom_diffusion." in key for key in state):
        return Loaded(custom_diffusion.to_core(state, names, base))
    return reading.to_core(state, metadata, names)
