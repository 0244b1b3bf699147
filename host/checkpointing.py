"""Gradient checkpointing and differentiable layers, for training copies of the host's networks.

Everything is set on the copy's own module objects. The host's classes and the loaded model do not change.
"""

from __future__ import annotations

import functools

import comfy.ops
import torch
from comfy.clip_model import CLIPLayer
from comfy.ldm.flux.layers import DoubleStreamBlock, SingleStreamBlock
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel
from comfy.model_patcher import LowVramPatch
from comfy.text_encoders.t5 import T5LayerFF, T5LayerSelfAttention
from torch.utils.checkpoint import checkpoint

_ADD_IN_PLACE = (CLIPLayer, T5LayerFF, T5LayerSelfAttention, DoubleStreamBlock, SingleStreamBlock)


def make_differentiable(network: torch.nn.Module) -> None:
    """Make the layers of a training copy differentiable where the host wrote them for inference only.

    - Blocks that add to their input in place would overwrite what their norms keep for the backward pass, so those norms get a copy.
    - For layers that cast or move a weight at each call (offloaded, fp8, or stored in another dtype) autograd would keep every cast
      weight, which is a second model; they cast again in the backward pass instead.
    """
    for module in network.modules():
        if isinstance(module, _ADD_IN_PLACE):
            for name, norm in module.named_children():
                if "norm" in name and not any(True for _ in norm.children()):
                    norm.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(), *inputs[1:]))
        elif isinstance(module, comfy.ops.CastWeightBiasOp) and isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            module.forward = functools.partial(_frozen_forward, module, module.forward)


def gradient_checkpointing(network: torch.nn.Module) -> int:
    """Make the blocks of a training copy recompute their activations in the backward pass instead of keeping them. Returns the number of blocks.

    The gradients are the same. A step takes one more forward pass and keeps only the input of each block between the passes.
    Adapters may be attached inside the blocks before or after this call.
    """
    blocks = _blocks(network)
    for block in blocks:
        block.forward = functools.partial(_checkpointed, block.forward)
    return len(blocks)


def _blocks(network: torch.nn.Module) -> list[torch.nn.Module]:
    if isinstance(network, UNetModel):
        return [module for module in network.modules() if isinstance(module, (ResBlock, BasicTransformerBlock))]
    lists = [child for child in network.children() if isinstance(child, torch.nn.ModuleList)]
    return [block for blocks in lists for block in blocks if any(True for _ in block.parameters())]


def _checkpointed(forward, *args, **kwargs):
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)

    def run(*args, **kwargs):  # on copies: a block may add to its input in place, and the recomputation needs the input unchanged
        return forward(*map(_own, args), **{name: _own(value) for name, value in kwargs.items()})

    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _own(value):
    if not torch.is_tensor(value):
        return value
    copy = value.clone()
    vars(copy).update(vars(value))  # which rows of text features belong to tokens
    return copy


def _frozen_forward(layer, forward, x, *args, **kwargs):
    weight, bias = layer.weight, layer.bias
    cast = weight.dtype != x.dtype or weight.device != x.device or layer.weight_function or layer.bias_function
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    trained = trained or not all(isinstance(function, LowVramPatch) for function in [*layer.weight_function, *layer.bias_function])
    if args or kwargs or trained or not cast or not (torch.is_grad_enabled() and x.requires_grad):
        return forward(x, *args, **kwargs)
    if isinstance(layer, torch.nn.Linear):  # flat, because autograd forbids adding in place to a view
        return _Frozen.apply(x.flatten(0, -2), layer, forward).unflatten(0, x.shape[:-1])
    return _Frozen.apply(x, layer, forward)


class _Frozen(torch.autograd.Function):
    """A linear or convolution layer with a frozen weight: neither the weight nor its cast is kept for the backward pass."""

    @staticmethod
    def forward(ctx, x, layer, forward):
        ctx.layer, ctx.shape, ctx.dtype = layer, x.shape, x.dtype
        return forward(x)

    @staticmethod
    def backward(ctx, gradient):
        layer = ctx.layer
        weight, bias, stream = comfy.ops.cast_bias_weight(layer, gradient, offloadable=True)
        if isinstance(layer, torch.nn.Linear):
            result = gradient @ weight
        else:
            result = torch.nn.grad.conv2d_input(ctx.shape, weight, gradient, layer.stride, layer.padding, layer.dilation, layer.groups)
        comfy.ops.uncast_bias_weight(layer, weight, bias, stream)
        return result.to(ctx.dtype), None, None
