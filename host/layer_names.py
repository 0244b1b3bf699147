"""What other tools call the layers of a loaded model, by the host's own tables; and the model's own weights under those names."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_base
import comfy.model_management
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.lora import LORA_CLIP_MAP

from ..formats import layouts
from ..formats.concept_file import Export
from ..formats.layouts import LayerNames
from .patcher import DIFFUSION, family, patched, weight_shapes

# Text encoders by the host's key: (kohya's number, diffusers' part of the pipeline, "" where its LoRA loader takes none).
_SINGLE = {768: "clip_l", 1024: "clip_h"}  # by the width of the U-Net's conditioning
_SEVERAL = [
    (comfy.model_base.SDXL, {"clip_l": ("1", "text_encoder"), "clip_g": ("2", "text_encoder_2")}),
    (comfy.model_base.SD3, {"clip_l": ("1", "text_encoder"), "clip_g": ("2", "text_encoder_2"), "t5xxl": ("3", "")}),
    (comfy.model_base.Flux, {"clip_l": ("1", "text_encoder"), "t5xxl": ("3", "")}),
]
_TRANSFORMERS = [
    (comfy.model_base.SD3, comfy.utils.mmdit_to_diffusers),
    (comfy.model_base.AuraFlow, comfy.utils.auraflow_to_diffusers),
    (comfy.model_base.PixArt, comfy.utils.pixart_to_diffusers),
    (comfy.model_base.Flux, comfy.utils.flux_to_diffusers),
    (comfy.model_base.Lumina2, comfy.utils.z_image_to_diffusers),
]
_T5_LAYERS = [
    *(f"layer.0.SelfAttention.{name}" for name in "qkvo"),
    *(f"layer.1.DenseReluDense.{name}" for name in ("wi_0", "wi_1", "wo")),
]


def layer_names(patcher) -> LayerNames:
    """The names of the model's layers, and of its family's text encoders, in kohya's and diffusers' layouts."""
    model = patcher.model
    shapes = {key.removesuffix(".weight"): shape for key, shape in weight_shapes(patcher).items() if key.endswith(".weight")}
    unet = isinstance(model.diffusion_model, UNetModel)
    one, split = _diffusers(model, shapes)
    several = next((encoders for kind, encoders in _SEVERAL if isinstance(model, kind)), None)
    plain = unet and several is None  # kohya trains these two on diffusers' own network, all others on the published one
    kohya = {layer: _word("lora_unet_", one[layer].partition(".")[2] if plain and layer in one else layer.removeprefix(DIFFUSION)) for layer in shapes}
    single = _SINGLE.get(model.model_config.unet_config.get("context_dim")) if unet else None
    for key, (number, component) in (several or ({single: ("", "text_encoder")} if single else {})).items():
        for layer in _text_layers(key):
            ours = f"text_encoders.{key}.transformer.{layer}"
            kohya[ours] = _word(f"lora_te{number}_", layer)
            if component:
                one[ours] = f"{component}.{layer}"
    return LayerNames(family(patcher), kohya, one, split, shapes)


def base_weight(patcher) -> Callable[[str], torch.Tensor]:
    """A function from a layer's name to its weight as it came from the file, float32 on the CPU. KeyError where the model has no such layer."""

    def weight(layer: str) -> torch.Tensor:
        return patched(patcher, f"{layer}.weight", [], torch.device("cpu"))

    return weight


def export_for(patcher, layout: str, compress: float) -> Export:
    """How a concept of the model is written; `patcher` may be None where `layout` is core's. Decomposes on the host's device, interruptible."""
    device = comfy.model_management.get_torch_device()
    interrupt = comfy.model_management.throw_exception_if_processing_interrupted
    if patcher is None or layout == "comfyui":
        return Export(layout, compress, device=device, each=interrupt)
    return Export(layout, compress, layer_names(patcher), base_weight(patcher), device, interrupt)


def convert_for(patcher) -> Callable[[layouts.State, dict[str, str]], layouts.Loaded]:
    """A function that gives a state of any layout, with its file's metadata, core's names of the model's layers."""
    return lambda state, metadata: layouts.to_core(state, metadata, layer_names(patcher), base_weight(patcher))


def _diffusers(model, shapes: dict[str, torch.Size]) -> tuple[dict[str, str], dict[str, list[tuple[str, int, int]]]]:
    """(layers that are one in diffusers too, layers that are several there); of several names of one layer the first."""
    config = model.model_config.unet_config
    table = comfy.utils.unet_to_diffusers(config) if isinstance(model.diffusion_model, UNetModel) else {}
    component = "unet"
    for kind, names in _TRANSFORMERS:
        if isinstance(model, kind) and type(model).__name__ not in ("Flux2", "LongCatImage"):  # theirs differ from what the table says first
            table, component = names(config), "transformer"
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
