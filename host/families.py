"""The table of model families: one row holds everything that the pack knows about a family.

Training (families, layers), guidance (networks that keep the rows of a batch), export to other tools' layouts, and metadata read it. A
model without a row cannot be trained, guidance predicts its sides one at a time, and its files keep core's names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import comfy.model_base
import comfy.utils
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

UNDECLARED = "undeclared"  # `Family.mixed_rows` of a network whose layers no test has compared
UNET = f"{UNetModel.__module__}.{UNetModel.__qualname__}"

_UNET_LAYERS = {
    "cross-attention": (r"attn2\.(to_[qkv]|to_out\.0)",),
    "text": (r"attn2\.to_[kv]",),
    "attention": (r"attn[12]\.(to_[qkv]|to_out\.0)",),
    "feed-forward": (r"ff\.net\.(0\.proj|2)",),
    "convolutions": (r"(input_blocks|middle_block|output_blocks)\..*(in_layers\.2|out_layers\.3|skip_connection|op|conv|proj_in|proj_out)",),
}
_FLUX_LAYERS = {
    "attention": (r"(img|txt)_attn\.(qkv|proj)", r"single_blocks\.\d+\.linear[12]"),  # linear1 and linear2: attention and feed-forward in one matrix
    "feed-forward": (r"(img|txt)_mlp\.(0|2)",),
}
# Layers of CLIP encoders. T5 and language models stay frozen, as in most trainers: they are larger than everything else together.
TEXT_LAYERS = {"attention": (r"self_attn\.(q|k|v|out)_proj",), "feed-forward": (r"mlp\.fc[12]",)}


@dataclass(frozen=True)
class Family:
    """One family of models.

    name           the family's usual name
    model          the host's class in comfy.model_base
    network        the class of the denoising network, with its module
    trained        Train Concept trains it; each such family has a test
    context        width of the network's conditioning, if it distinguishes two families of one class
    layers         part of the network -> patterns for the ends of its layers' paths: "cross-attention" (if separate from self-attention),
                   "attention" (all of it), "feed-forward", "convolutions"; "text": what makes keys and values of the text features and of
                   nothing else, each row by itself, where the text features reach it unchanged
    sides          what the network predicts ("eps", "v", "flow") -> side in pixels of the square pictures that all such models were made for;
                   empty where they differ or nobody says
    mixed_rows     pattern for the paths of layers whose input is not one row per row of the batch; "" = no such layer, UNDECLARED = not known.
                   A promise about the host's code, held by tests that compare a batch with two forwards
    encoders       text encoder -> (kohya's number, diffusers' pipeline component; "" if diffusers loads no LoRA for it)
    diffusers      the function of comfy.utils that maps diffusers' layer names; "" = none fits
    architectures  the host's class in comfy.supported_models -> (ModelSpec's architecture, kohya's ss_base_model_version)
    """

    name: str
    model: str
    network: str
    trained: bool = False
    context: int | None = None
    layers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sides: dict[str, int] = field(default_factory=dict)
    mixed_rows: str = UNDECLARED
    encoders: dict[str, tuple[str, str]] = field(default_factory=dict)
    diffusers: str = ""
    architectures: dict[str, tuple[str, str]] = field(default_factory=dict)


_UNET_ROWS = r"time_stack|time_mix|time_pos_embed"  # temporal layers of video U-Nets: their rows are pixels, not frames
FAMILIES = (
    Family(
        "Stable Diffusion 1.x",
        "BaseModel",
        UNET,
        trained=True,
        context=768,
        layers=_UNET_LAYERS,
        sides={"eps": 512},
        mixed_rows=_UNET_ROWS,
        encoders={"clip_l": ("", "text_encoder")},
        diffusers="unet_to_diffusers",
        architectures={"SD15": ("stable-diffusion-v1", "sd_v1")},
    ),
    Family(
        "Stable Diffusion 2.x",
        "BaseModel",
        UNET,
        trained=True,
        context=1024,
        layers=_UNET_LAYERS,
        sides={"eps": 512, "v": 768},
        mixed_rows=_UNET_ROWS,
        encoders={"clip_h": ("", "text_encoder")},
        diffusers="unet_to_diffusers",
        architectures={"SD20": ("stable-diffusion-v2-512", "sd_v2")},
    ),
    Family(
        "SDXL",
        "SDXL",
        UNET,
        trained=True,
        layers=_UNET_LAYERS,
        sides={"eps": 1024, "v": 1024},
        mixed_rows=_UNET_ROWS,
        encoders={"clip_l": ("1", "text_encoder"), "clip_g": ("2", "text_encoder_2")},
        diffusers="unet_to_diffusers",
        architectures={"SDXL": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0")},
    ),
    Family(
        "SDXL Refiner",
        "SDXLRefiner",
        UNET,
        layers=_UNET_LAYERS,
        mixed_rows=_UNET_ROWS,
        diffusers="unet_to_diffusers",
        architectures={"SDXLRefiner": ("stable-diffusion-xl-v1-refiner", "sdxl_refiner_v1-0")},
    ),
    Family(
        "SD3",
        "SD3",
        "comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper",
        trained=True,
        layers={"attention": (r"attn2?\.(qkv|proj)",), "feed-forward": (r"mlp\.fc[12]",)},
        sides={"flow": 1024},
        mixed_rows="",
        encoders={"clip_l": ("1", "text_encoder"), "clip_g": ("2", "text_encoder_2"), "t5xxl": ("3", "")},
        diffusers="mmdit_to_diffusers",
        architectures={"SD3": ("stable-diffusion-3", "sd3")},
    ),
    Family(
        "Flux",
        "Flux",
        "comfy.ldm.flux.model.Flux",
        trained=True,
        layers=_FLUX_LAYERS,
        sides={"flow": 1024},
        mixed_rows="",
        encoders={"clip_l": ("1", "text_encoder"), "t5xxl": ("3", "")},
        diffusers="flux_to_diffusers",
        architectures={"Flux": ("flux-1-dev", "flux1"), "FluxSchnell": ("flux-1-schnell", "flux1")},
    ),
    Family("Flux 2", "Flux2", "comfy.ldm.flux.model.Flux", trained=True, layers=_FLUX_LAYERS, sides={"flow": 1024}, mixed_rows=""),
    Family("LongCat Image", "LongCatImage", "comfy.ldm.flux.model.Flux", layers=_FLUX_LAYERS, mixed_rows=""),
    Family(
        "Chroma",
        "Chroma",
        "comfy.ldm.chroma.model.Chroma",
        trained=True,
        layers=_FLUX_LAYERS,
        mixed_rows="",
        encoders={"t5xxl": ("3", "")},
        diffusers="flux_to_diffusers",
    ),
    Family(
        "AuraFlow",
        "AuraFlow",
        "comfy.ldm.aura.mmdit.MMDiT",
        trained=True,
        layers={"attention": (r"attn\.w[12][qkvo]",), "feed-forward": (r"mlp[CX]?\.c_(fc1|fc2|proj)",)},
        sides={"flow": 1024},
        mixed_rows="",
        diffusers="auraflow_to_diffusers",
        architectures={"AuraFlow": ("auraflow-1", "auraflow")},
    ),
    Family(
        "Lumina 2 / Z-Image",
        "Lumina2",
        "comfy.ldm.lumina.model.NextDiT",
        trained=True,
        layers={"attention": (r"attention\.(qkv|out)",), "feed-forward": (r"feed_forward\.w[123]",)},
        sides={"flow": 1024},
        mixed_rows="",
        diffusers="z_image_to_diffusers",
        architectures={"Lumina2": ("lumina-2", "lumina2")},
    ),
    Family(
        "PixArt",
        "PixArt",
        "comfy.ldm.pixart.pixartms.PixArtMS",
        trained=True,
        layers={
            "cross-attention": (r"cross_attn\.(q_linear|kv_linear|proj)",),
            "attention": (r"attn\.(qkv|proj)", r"cross_attn\.(q_linear|kv_linear|proj)"),
            "feed-forward": (r"mlp\.fc[12]",),
        },
        mixed_rows=r"cross_attn\.kv_linear$",  # its input has the tokens of all prompts in one row
        diffusers="pixart_to_diffusers",
    ),
    Family(
        "HunyuanDiT",
        "HunyuanDiT",
        "comfy.ldm.hydit.models.HunYuanDiT",
        trained=True,
        layers={
            "cross-attention": (r"attn2\.(q|kv|out)_proj",),
            "attention": (r"attn2\.(q|kv|out)_proj", r"attn1\.(Wqkv|out_proj)"),
            "feed-forward": (r"mlp\.fc[12]",),
        },
        sides={"v": 1024},
        mixed_rows=r"^mlp_t5\.|^pooler\.",  # one list with the tokens of all prompts; token dimension first
    ),
    Family(
        "Qwen-Image",
        "QwenImage",
        "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel",
        trained=True,
        layers={"attention": (r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)",), "feed-forward": (r"(img|txt)_mlp\.net\.(0\.proj|2)",)},
        mixed_rows="",
    ),
    Family(
        "Wan 2.1",
        "WAN21",
        "comfy.ldm.wan.model.WanModel",
        trained=True,
        layers={"cross-attention": (r"cross_attn\.[qkvo]",), "attention": (r"(self|cross)_attn\.[qkvo]",), "feed-forward": (r"ffn\.[02]",)},
        mixed_rows="",
    ),
    Family("Cosmos Predict 2", "CosmosPredict2", "comfy.ldm.cosmos.predict2.MiniTrainDIT", mixed_rows=""),
    Family("LTX Video", "LTXV", "comfy.ldm.lightricks.model.LTXVModel", mixed_rows=""),
    Family(
        "HiDream",
        "HiDream",
        "comfy.ldm.hidream.model.HiDreamImageTransformer2DModel",
        mixed_rows=r"\.experts\.",  # its rows are the tokens routed to an expert
    ),
)


def family(patcher) -> Family | None:
    """The row of a MODEL's class, or of its nearest base class that has one; None if there is no row."""
    model = patcher.model
    for base in type(model).__mro__:
        if base.__module__ != comfy.model_base.__name__:
            continue
        for row in FAMILIES:
            if row.model == base.__name__ and (row.model != "BaseModel" or _context(model) == row.context):
                return row
    return None


def trained_family(patcher) -> Family | None:
    """The row of a MODEL that Train Concept can train, else None. A subclass of a trained family's class does not count."""
    row, model = family(patcher), type(patcher.model)
    exact = row is not None and model.__name__ == row.model and model.__module__ == comfy.model_base.__name__
    return row if exact and row.trained else None


def side(patcher, prediction: str | None) -> int:
    """Side in pixels of the pictures that a MODEL was made for. ValueError if its family has no such size (`Family.sides`)."""
    row = family(patcher)
    if row is None or prediction not in row.sides:
        name = row.name if row else type(patcher.model).__name__
        raise ValueError(
            f"resolution is auto, but Kindred does not know the size of the pictures that this model was made for ({name}). Type it, for example 512 or 1024."
        )
    return row.sides[prediction]


def layer_patterns(network: torch.nn.Module) -> dict[str, tuple[str, ...]]:
    """Part of the network -> patterns of its layers (`Family.layers`); empty if no row has the network's class."""
    name = f"{type(network).__module__}.{type(network).__qualname__}"
    return next((row.layers for row in FAMILIES if row.network == name), {})


def is_text_layer(network: torch.nn.Module, path: str) -> bool:
    """Is the layer at `path` one of the family's "text" layers?"""
    return any(re.search(rf"(?:^|\.)(?:{pattern})$", path) for pattern in layer_patterns(network).get("text", ()))


def diffusers_table(row: Family | None, config: dict) -> dict:
    """diffusers' name of a weight -> the host's, for a network with this configuration; empty if the host has no table for it."""
    return getattr(comfy.utils, row.diffusers)(config) if row and row.diffusers else {}


def architecture(patcher, prediction: str) -> tuple[str, str]:
    """(ModelSpec's architecture, kohya's base version) of a MODEL. A family without agreed names gets the host's name in lower case.

    prediction  "eps", "v" or "flow"
    """
    config = type(patcher.model.model_config).__name__
    if config == "SD20" and prediction == "v":
        return "stable-diffusion-v2-768-v", "sd_v2_v"
    known = {name: values for row in FAMILIES for name, values in row.architectures.items()}
    return known.get(config, (config.lower(), config.lower()))


def _context(model) -> int | None:
    """Width of a U-Net's conditioning; None for other networks."""
    return model.model_config.unet_config.get("context_dim") if isinstance(model.diffusion_model, UNetModel) else None
