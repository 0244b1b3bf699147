"""Names of a loaded model's layers in other tools' layouts, from the host's own tables, and the exports that use them."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import torch
from comfy.lora import LORA_CLIP_MAP

from ..formats import layouts
from ..formats.concept_file import Export
from ..formats.layouts import LayerNames
from . import families
from .patcher import DIFFUSION, architecture_name, patched, weight_shapes

_T5_LAYERS = [
    *(f"layer.0.SelfAttention.{name}" for name in "qkvo"),
    *(f"layer.1.DenseReluDense.{name}" for name in ("wi_0", "wi_1", "wo")),
]


def layer_names(patcher) -> LayerNames:
    """The names of the model's layers and of its family's text encoders in kohya's and diffusers' layouts."""
    model = patcher.model
    shapes = {key.removesuffix(".weight"): shape for key, shape in weight_shapes(patcher).items() if key.endswith(".weight")}
    row = families.family(patcher)
    one, split = _diffusers(model, row, shapes)
    by_diffusers = row is not None and row.model == "BaseModel"  # kohya names SD 1.x and 2.x after diffusers' network, all others after the original one
    kohya = {
        layer: _kohya_name("lora_unet_", one[layer].partition(".")[2] if by_diffusers and layer in one else layer.removeprefix(DIFFUSION)) for layer in shapes
    }
    for key, (number, component) in (row.encoders if row else {}).items():
        for layer in _text_layers(key):
            ours = f"text_encoders.{key}.transformer.{layer}"
            kohya[ours] = _kohya_name(f"lora_te{number}_", layer)
            if component:
                one[ours] = f"{component}.{layer}"
    return LayerNames(architecture_name(patcher), kohya, one, split, shapes)


def base_weight(patcher) -> Callable[[str], torch.Tensor]:
    """A function: layer name -> its unpatched weight, float32 on the CPU. The function raises KeyError if the model has no such layer."""

    def weight(layer: str) -> torch.Tensor:
        return patched(patcher, f"{layer}.weight", [], torch.device("cpu"))

    return weight


def export_for(patcher, layout: str, compress: float) -> Export:
    """The `Export` that writes a concept of the model in `layout`. It decomposes differences on the host's device and can be interrupted.

    patcher  may be None for core's layout, "comfyui"
    """
    device = comfy.model_management.get_torch_device()
    interrupt = comfy.model_management.throw_exception_if_processing_interrupted
    if patcher is None or layout == "comfyui":
        return Export(layout, compress, device=device, each=interrupt)
    return Export(layout, compress, layer_names(patcher), base_weight(patcher), device, interrupt)


def convert_for(patcher) -> Callable[[layouts.State, dict[str, str]], layouts.Loaded]:
    """A function: (state of any layout, its file's metadata) -> the state under core's names of the model's layers."""
    return lambda state, metadata: layouts.to_core(state, metadata, layer_names(patcher), base_weight(patcher))


def _diffusers(model, row: families.Family | None, shapes: dict[str, torch.Size]) -> tuple[dict[str, str], dict[str, list[tuple[str, int, int]]]]:
    """(core's layer -> diffusers' name, core's layer -> the (name, start, length) of each diffusers layer whose rows it joins).

    If diffusers has several names for one layer, the first counts.
    """
    table = families.diffusers_table(row, model.model_config.unet_config)
    component = "unet" if row is not None and row.network == families.UNET else "transformer"
    one: dict[str, str] = {}
    split: dict[str, list[tuple[str, int, int]]] = {}
    for name, target in table.items():
        if not name.endswith(".weight") or name.startswith("class_embedding."):  # SDXL's name for the same layer is add_embedding
            continue
        key, rows = (target, None) if isinstance(target, str) else target[:2]
        layer, theirs = DIFFUSION + key.removesuffix(".weight"), f"{component}.{name.removesuffix('.weight')}"
        if layer not in shapes:
            continue
        if rows is not None and rows[0] == 0:
            split.setdefault(layer, []).append((theirs, rows[1], rows[2]))
        elif isinstance(target, str):
            one.setdefault(layer, theirs)
    return one, split


def _text_layers(key: str) -> list[str]:
    if key.startswith("t5"):
        return [f"encoder.block.{block}.{layer}" for block in range(24) for layer in _T5_LAYERS]
    return [*(f"text_model.encoder.layers.{block}.{layer}" for block in range(32) for layer in LORA_CLIP_MAP), "text_projection"]


def _kohya_name(prefix: str, layer: str) -> str:
    return prefix + layer.replace(".", "_")
