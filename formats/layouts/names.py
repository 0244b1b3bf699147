"""Layer names of a model in core and other tools, and the tensors that a file can store for a layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

# The tensors of a layer that core's adapters read (LoRA, DoRA, LoHa, LoKr, OFT/BOFT, GLoRA, full differences), the longer names first.
_PART = re.compile(
    r"(?P<layer>.+?)\.(?P<part>(?:lora_(?:up|down|mid)|[ab][12])\.weight|alpha|dora_scale|diff|diff_b|set_weight|reshape_weight|w_norm|b_norm"
    r"|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|oft_blocks|rescale)"
)
_TEXT = "text_encoders."  # prefix of a text encoder's layers in core: text_encoders.<encoder>.transformer.<layer>
_MODEL = "diffusion_model."


class Loaded(dict):
    """A state under core's names, loaded from a file.

    notes  sentences for the artist about missing information in the file and what was assumed instead
    """

    def __init__(self, state: Mapping[str, torch.Tensor], notes: list[str] | None = None):
        super().__init__(state)
        self.notes = list(notes or [])


@dataclass(frozen=True)
class LayerNames:
    """The layers of one model, by core's name without `.weight` (`diffusion_model.middle_block.1.proj_in`).

    family     its usual name, for messages
    kohya      core's name -> kohya's (`lora_unet_mid_block_attentions_0_proj_in`)
    diffusers  core's name -> diffusers', prefixed with the part of the pipeline (`unet.mid_block.attentions.0.proj_in`);
               only layers that correspond one to one
    split      core's name -> the rows that are separate layers in diffusers: [(name, first row, rows)]
    shapes     core's name -> the shape of its weight; of convolutions at least
    """

    family: str
    kohya: Mapping[str, str]
    diffusers: Mapping[str, str]
    split: Mapping[str, list[tuple[str, int, int]]] = field(default_factory=dict)
    shapes: Mapping[str, torch.Size] = field(default_factory=dict)

    def find(self, name: str) -> str | None:
        """Core's name of the layer that some version of another tool calls `name`; None if the tables do not contain it.

        ValueError if several layers have that name: a text encoder's layer without the encoder, if a family has two.
        """
        layers = self._known.get(name)
        if layers is not None and len(layers) > 1:
            encoders = ", ".join(layer.split(".")[1] for layer in layers)
            raise ValueError(
                f"The file does not say which text encoder ({encoders}) its weights belong to. "
                f"Move it into a folder named 'text_encoder' or 'text_encoder_2' and load that folder. The first such weight is {name!r}."
            )
        return layers[0] if layers else None

    def piece(self, name: str) -> str | None:
        """diffusers' full name of a layer that is a block of rows in one of core's (q of qkv). `name` may lack the part of the pipeline."""
        return self._pieces.get(name)

    @cached_property
    def _pieces(self) -> dict[str, str]:
        full = [name for rows in self.split.values() for name, _, _ in rows]
        return {form: name for name in full for form in (name, name.partition(".")[2])}

    @cached_property
    def _known(self) -> dict[str, list[str]]:
        """Every name of a layer -> the layers that have it."""
        known: dict[str, list[str]] = {}
        for layer in dict.fromkeys((*self.shapes, *self.kohya, *self.diffusers)):
            for name in dict.fromkeys(self._names(layer)):
                known.setdefault(name, []).append(layer)
        return known

    def _names(self, layer: str) -> list[str]:
        """All names of `layer`, including those from other tables."""
        names, (component, _, rest) = [layer], self.diffusers.get(layer, "").partition(".")
        dotted = [rest] if rest else []
        if layer.startswith(_TEXT):
            encoder, _, own = layer.removeprefix(_TEXT).partition(".transformer.")
            numbered = re.match(r"lora_te\d*", self.kohya.get(layer, ""))
            number = numbered[0] if numbered else ""
            own = own.removeprefix("text_model.")
            older = own.replace(".self_attn.out_proj", ".self_attn.to_out").replace("_proj", "") if ".self_attn." in own else own  # diffusers before PEFT
            older = re.sub(r"\.self_attn\.([qkv])$", r".self_attn.to_\1", older)
            # CLIP's layers are inside a `text_model` or not, depending on the version of transformers.
            dotted = [prefix + form for form in (own, older) for prefix in ("text_model.", "")] if component else []
            names += [f"{encoder}.{form}" for form in dotted]  # OneTrainer
            if number:
                names += [f"{number}_{form.replace('.', '_')}" for form in dotted] + [f"{number}.{form}" for form in dotted]
        else:
            part = component or "transformer"
            names += [f"{part}.{layer.removeprefix(_MODEL)}"]  # OneTrainer
            names += [f"lora_{part}.{form}" for form in dotted] + [f"lora_{part}_{form.replace('.', '_')}" for form in dotted]
            dotted += [form.removesuffix(".0") for form in dotted if form.endswith(".to_out.0")]  # diffusers before PEFT
        if layer in self.kohya:
            names.append(self.kohya[layer])
        return names + dotted + [f"{component}.{form}" for form in dotted if component]


def split(key: str) -> tuple[str, str]:
    """(layer, part) of a key: `x.y.lora_up.weight` -> (`x.y`, `lora_up.weight`); part "" if the key belongs to no adapter."""
    match = _PART.fullmatch(key)
    return (match["layer"], match["part"]) if match else (key, "")


def by_layer(state: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """Layer -> part -> tensor, in the order of the state. ValueError for a key that belongs to no adapter."""
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        layer, part = split(key)
        if not part:
            raise ValueError(f"The weight {key!r} belongs to no adapter that other tools know. Save in the layout 'comfyui'.")
        layers.setdefault(layer, {})[part] = value
    return layers


def as_convolution(parts: Mapping[str, torch.Tensor], shape: torch.Size | None) -> dict[str, torch.Tensor]:
    """`parts` with a LoRA's flat factors reshaped to convolutions, as other tools expect: down [r, in, *kernel], up [out, r, 1, ...].

    `shape` is the layer's weight shape; parts of other layers than convolutions stay unchanged.
    """
    parts = dict(parts)
    if shape is None or len(shape) < 3 or "lora_down.weight" not in parts or "lora_mid.weight" in parts:
        return parts
    ones = (1,) * (len(shape) - 2)
    if parts["lora_down.weight"].ndim == 2:
        parts["lora_down.weight"] = parts["lora_down.weight"].reshape(-1, *shape[1:])
    if parts["lora_up.weight"].ndim == 2:
        parts["lora_up.weight"] = parts["lora_up.weight"].reshape(*parts["lora_up.weight"].shape, *ones)
    return parts


def without_bound(parts: Mapping[str, torch.Tensor], bound: float) -> dict[str, torch.Tensor]:
    """`parts` of an OFT whose generator Q = B - B^T has a norm of at most `bound` (0 = no bound), with the bound applied to B.

    LyCORIS multiplies its `alpha` by the layer's outputs to get the bound, core does not. Without a bound, a file has the same meaning for both.
    """
    blocks = parts["oft_blocks"]
    length = (blocks.double() - blocks.double().transpose(-1, -2)).norm() + 1e-8
    factor = min(1.0, bound / length.item()) if bound > 0 else 1.0
    return {**parts, "oft_blocks": blocks if factor == 1.0 else (blocks.double() * factor).to(blocks.dtype), "alpha": torch.tensor(0.0)}
