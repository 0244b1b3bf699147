"""Adapters with random weights on the host's small models, and what the host makes of them."""

from __future__ import annotations

import torch

from .host import pack

LAYERS = (
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
    "input_blocks.1.1.transformer_blocks.0.attn2.to_out.0",
    "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj",
    "middle_block.1.transformer_blocks.0.attn2.to_v",
    "middle_block.0.in_layers.2",
    "output_blocks.0.0.skip_connection",
    "output_blocks.1.1.proj_in",
)


def random_lora(model, clip=None, layers=LAYERS, rank: int = 4, alpha: float = 2.0, seed: int = 0) -> dict[str, torch.Tensor]:
    """A LoRA under core's names; the factors of convolutions flat, as core's trainer makes them."""
    generator = torch.Generator().manual_seed(seed)
    weights = {f"diffusion_model.{layer}": model.model.get_parameter(f"diffusion_model.{layer}.weight") for layer in layers}
    if clip is not None:
        for key, weight in clip.cond_stage_model.state_dict().items():
            if ".layers.1." in key and key.endswith(("q_proj.weight", "out_proj.weight", "mlp.fc1.weight")):
                weights[f"text_encoders.{key.removesuffix('.weight')}"] = weight
    state = {}
    for index, (layer, weight) in enumerate(weights.items()):
        own = rank + index % 2 * rank  # two ranks, so that nothing can be taken for all of them
        state[f"{layer}.lora_up.weight"] = torch.randn(weight.shape[0], own, generator=generator) * 0.1
        state[f"{layer}.lora_down.weight"] = torch.randn(own, weight.shape[1:].numel(), generator=generator) * 0.1
        state[f"{layer}.alpha"] = torch.tensor(alpha)
    return state


def random_kv(model, seed: int = 0, rank: int | None = None) -> dict[str, torch.Tensor]:
    """Full differences of all cross-attention K and V, as Custom Diffusion learns them; of low rank and some noise where `rank` is given."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, weight in model.model.named_parameters():
        if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")):
            value = torch.randn(weight.shape, generator=generator) * 1e-3
            if rank:
                value = value * 0.01 + torch.randn(weight.shape[0], rank, generator=generator) @ torch.randn(rank, weight.shape[1], generator=generator) * 1e-3
            state[name.removesuffix(".weight") + ".diff"] = value
    return state


def patched_weights(patcher) -> dict[str, torch.Tensor]:
    """Every weight that the patcher changes, as the host would merge it, float32."""
    import comfy.lora

    weights = dict(patcher.model.named_parameters())
    return {key: comfy.lora.calculate_weight(patches, weights[key].detach().float().clone(), key) for key, patches in patcher.patches.items()}


def stock_loader(model, clip, path, caplog=None):
    """(model, clip) by core's own LoraLoader node from a file in the host's loras folder; fails where core leaves a key of it unread."""
    import importlib

    import folder_paths

    root = folder_paths.get_folder_paths("loras")[0]
    if caplog is not None:
        caplog.clear()
    with torch.inference_mode():
        result = importlib.import_module("nodes").LoraLoader().load_lora(model, clip, str(path.relative_to(root)), 1.0, 1.0)
    if caplog is not None:
        assert not [record.getMessage() for record in caplog.records if "not loaded" in record.getMessage().lower()]
    return result


def assert_same_patches(got, want, **tolerance) -> None:
    """Do two patchers mean the same weights?"""
    got, want = patched_weights(got), patched_weights(want)
    assert got.keys() == want.keys() and got
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, **(tolerance or {"rtol": 0, "atol": 0}))


def apply(model, clip, state):
    """(model, clip) by the pack's own way."""
    with torch.inference_mode():
        return pack("host.lora").apply_lora(model, clip, state)
