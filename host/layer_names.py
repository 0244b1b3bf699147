"""What other tools call the layers of a loaded model, by the host's own tables; and the model's own weights under those names."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import torch
from comfy.lora import LORA_CLIP_MAP

from ..formats import layouts
from ..formats.concept_file import Export
from ..formats.layouts import LayerNames
from . import families
from .patcher import DIFFUSION, family, patched, weight_shapes
from .types import Model

_T5_LAYERS = [
    *(f"layer.0.SelfAttention.{name}" for name in "qkvo"),
    *(f"layer.1.DenseReluDense.{name}" for name in ("wi_0", "wi_1", "wo")),
]


def layer_names(patcher: Model) -> LayerNames:
    """The names of the model's layers, and of its family's text encoders, in kohya's and diffusers' layouts."""
    model = patcher.model
    shapes = {key.removesuffix(".weight"): shape for key, shape in weight_shapes(patcher).items() if key.endswith(".weight")}
    row = families.family(patcher)
    one, split = _diffusers(model, row, shapes)
    plain = row is not None and row.model == "BaseModel"  # kohya trains SD 1.x and 2.x on diffusers' own network, all others on the published one
    kohya = {layer: _word("lora_unet_", one[layer].partition(".")[2] if plain and layer in one else layer.removeprefix(DIFFUSION)) for layer in shapes}
    for key, (number, component) in (row.encoders if row else {}).items():
        for layer in _text_layers(key):
            ours = f"text_encoders.{key}.transformer.{layer}"
            kohya[ours] = _word(f"lora_te{number}_", layer)
            if component:
                one[ours] = f"{component}.{layer}"
    return LayerNames(family(patcher), kohya, one, split, shapes)


def base_weight(patcher: Model) -> Callable[[str], torch.Tensor]:
    """A function from a layer's name to its weight as it came from the file, float32 on the CPU. KeyError where the model has no such layer."""

    def weight(layer: str) -> torch.Tensor:
        return patched(patcher, f"{layer}.weight", [], torch.device("cpu"))

    return weight


def export_for(patcher: Model | None, layout: str, compress: float) -> Export:
    """How a concept of the model is written; `patcher` may be None where `layout` is core's. Decomposes on the host's device, interruptible."""
    device = comfy.model_management.get_torch_device()
    interrupt = comfy.model_management.throw_exception_if_processing_interrupted
    if patcher is None or layout == "comfyui":
        return Export(layout, compress, device=device, each=interrupt)
    return Export(layout, compress, layer_names(patcher), base_weight(patcher), device, interrupt)


def convert_for(patcher: Model) -> Callable[[layouts.State, dict[str, str]], layouts.Loaded]:
    """A function that gives a state of any layout, with its file's metadata, core's names of the model's layers."""
    return lambda state, metadata: layouts.to_core(state, metadata, layer_names(patcher), base_weight(patcher))


def _diffusers(model, row: families.Family | None, shapes: dict[str, torch.Size]) -> tuple[dict[str, str], dict[str, list[tuple[str, int, int]]]]:
    """(layers that are one in diffusers too, layers that are several there); of several names of one layer the first."""
    table = families.diffusers_table(row, model.model_config.unet_config)
    component = "unet" if row is not None and row.network == families.UNET else "transformer"
    one: dict[str, str] = {}
    split: dict[str, list[tuple[str, int, int]]] = {}
    for name, place in table.items():
        if not name.endswith(".weight") or name.startswith("class_embedding."):  # SDXL calls the same layer add_embedding
            continue
        key, rows = (place, None) if isinstance(place, str) else place[:2]
        layer, theirs = DIFFUSION + key.removesuffix(".weight"), f"{component}.{name.removesuffix('.weight')}"
        if layer not in shapes:
            continue
        if rows is not None and rows[0] == 0:
            split.setdefault(layer, []).append((theirs, rows[1], rows[2]))
        elif isinstance(place, str):
            one.setdefault(layer, theirs)
    return one, split


def _text_layers(key: str) -> list[str]:
    if key.startswith("t5"):
        return [f"encoder.block.{block}.{layer}" for block in range(24) for layer in _T5_LAYERS]
    return [*(f"text_model.encoder.layers.{block}.{layer}" for block in range(32) for layer in LORA_CLIP_MAP), "text_projection"]


def _word(prefix: str, layer: str) -> str:
    return prefix + layer.replace(".", "_")
