"""Layouts of LoRA files, and the conversions between them.

comfyui           core's names (`diffusion_model.<layer>.lora_up.weight`, `text_encoders.<encoder>.<layer>...`): the result of training
kohya             `lora_unet_<layer>.lora_up.weight`, `lora_te_<layer>...`: kohya's tools, A1111, core, diffusers
diffusers         PEFT's names (`unet.<layer>.lora_A.weight`, `text_encoder.<layer>...`), for diffusers and PEFT
custom_diffusion  `<layer>.processor.to_k_custom_diffusion.weight`: whole K and V weights, as the authors of diffusers and ClassDiffusion save them

All conversions are pure: they receive the names of a model's layers as `LayerNames` and its weights as a function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from . import custom_diffusion, kohya, peft, reading
from .names import LayerNames, Loaded, split
from .peft_config import KEY as ADAPTER_METADATA
from .reading import has_peft_wrapper

LAYOUTS = ("comfyui", "kohya", "diffusers")  # an artist can choose to write these
State = dict[str, torch.Tensor]
BaseWeight = Callable[[str], torch.Tensor]

__all__ = ["ADAPTER_METADATA", "LAYOUTS", "BaseWeight", "LayerNames", "Loaded", "State", "from_core", "has_peft_wrapper", "to_core"]


def from_core(state: Mapping[str, torch.Tensor], layout: str, names: LayerNames | None, base: BaseWeight | None = None) -> tuple[str, State, dict[str, str]]:
    """(the layout written, its state, its metadata) of weight differences under core's names.

    In `diffusers`, full differences of cross-attention K and V are written as whole weights (`custom_diffusion`), all others as PEFT's LoRA.

    base   core layer -> the base model's weight, float32; only `custom_diffusion` needs it
    ValueError if the layout cannot hold some of the differences.
    """
    if layout == "comfyui":
        return layout, dict(state), {}
    if layout not in LAYOUTS:
        raise ValueError(f"There is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}.")
    if names is None:
        raise ValueError(
            f"The layout {layout!r} names layers as in the trained model. Connect that MODEL to Save Concept's input 'model', or choose 'comfyui'."
        )
    if layout == "kohya":
        return layout, kohya.from_core(state, names), {}
    if any(split(key)[1] == "diff" for key in state):
        return "custom_diffusion", custom_diffusion.from_core(state, names, base), {}
    return layout, *peft.from_core(state, names)


def to_core(state: Mapping[str, torch.Tensor], metadata: Mapping[str, str], names: LayerNames, base: BaseWeight | None = None) -> Loaded:
    """The state under core's names. Keys of layers that `names` does not know stay unchanged, because core's loader knows more of them.

    ValueError if core cannot apply all of the file, or if it does not fit the model.
    """
    if any("_custom_diffusion." in key for key in state):
        return Loaded(custom_diffusion.to_core(state, names, base))
    return reading.to_core(state, metadata, names)
