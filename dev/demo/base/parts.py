"""The three networks of a Stable Diffusion 1.5 checkpoint, built by the host's own classes at their reduced sizes."""

# torch cannot tell what the parts of a module are.
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

from typing import Any

import torch
from random_base import UNET

CLIP = {
    "hidden_size": 768,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
VOCABULARY, WIDTH, POSITIONS = 49408, 768, 77


def initialise(layer: torch.nn.Module) -> None:
    """A layer's usual start: the host's classes skip it, because they expect a checkpoint."""
    for kind in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.LayerNorm, torch.nn.GroupNorm):
        if isinstance(layer, kind):
            kind.reset_parameters(layer)  # pyright: ignore[reportArgumentType]: the layer is of this kind


@torch.no_grad()
def quiet(module: torch.nn.Module) -> None:
    """Every residual branch of a UNet starts at zero, as in the original."""
    from comfy.ldm.modules.attention import SpatialTransformer
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock

    for layer in module.modules():
        if isinstance(layer, ResBlock):
            layer.out_layers[-1].weight.zero_()
            layer.out_layers[-1].bias.zero_()
        if isinstance(layer, SpatialTransformer):
            layer.proj_out.weight.zero_()
            layer.proj_out.bias.zero_()


def autoencoder() -> Any:
    from comfy.taesd.taesd import TAESD, Block

    model = TAESD()
    with torch.no_grad():  # He's start, residual branches quiet: from the layers' default start the colours take a thousand steps to appear
        for layer in model.modules():
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    layer.bias.zero_()
        for layer in model.modules():
            if isinstance(layer, Block):
                layer.conv[-1].weight.mul_(0.1)
        model.taesd_encoder[-1].weight.mul_(0.5)
        model.taesd_decoder[-1].weight.mul_(0.1)
        model.taesd_decoder[-1].bias.fill_(0.5)
    return model.requires_grad_(True)


def text_encoder(layers: int, mlp: int) -> torch.nn.Module:
    """CLIP's text tower with ``layers`` layers and ``mlp`` hidden units; the token table is filled by ``token_table`` and frozen."""
    import comfy.ops
    from comfy.clip_model import CLIPTextModel_

    model = CLIPTextModel_({**CLIP, "num_hidden_layers": layers, "intermediate_size": mlp}, torch.float32, "cpu", comfy.ops.disable_weight_init)
    for layer in model.modules():
        initialise(layer)
    with torch.no_grad():
        model.embeddings.token_embedding.weight.copy_(token_table())
        model.embeddings.position_embedding.weight.copy_(token_table(1)[:POSITIONS] * 0.5)
        for layer in model.encoder.layers:
            layer.self_attn.out_proj.weight.mul_(0.5)
            layer.mlp.fc2.weight.mul_(0.5)
    model.requires_grad_(True)
    model.embeddings.token_embedding.weight.requires_grad_(False)
    return model


def token_table(salt: int = 0) -> torch.Tensor:
    """The frozen token embeddings [49408, 768]: sums of four random bytes, so that every machine makes the same bits and nothing is stored.

    Standard deviation 0.018, the size of CLIP's own; each value is a multiple of 2^-13 and exact in half precision.
    """
    import numpy as np

    raw = np.random.RandomState(20261121 + salt).bytes(VOCABULARY * WIDTH * 4)
    sums = np.frombuffer(raw, np.uint8).reshape(VOCABULARY, WIDTH, 4).sum(-1, dtype=np.int32) - 510
    return torch.from_numpy(sums.astype(np.float32) * 2.0**-13)


def unet() -> Any:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    model = UNetModel(**UNET, operations=comfy.ops.disable_weight_init)
    for layer in model.modules():
        initialise(layer)
    quiet(model)
    with torch.no_grad():
        model.out[-1].weight.zero_()
        model.out[-1].bias.zero_()
    return model.requires_grad_(True)
