"""Stable Diffusion's pipeline in diffusers with the weights of the host's small models, and what both compute."""

from __future__ import annotations

import torch

from .host import COMFYUI, pack

PROMPT = "a photo of a dog"


def pipeline(model, clip):
    """The pipeline whose U-Net and text encoder hold the weights of the host's `model` and `clip` (SD 1.5)."""
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(320,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=768,
    )
    unet.load_state_dict(_under_their_names(model, unet))
    text = CLIPTextModel(
        CLIPTextConfig(num_hidden_layers=3, intermediate_size=256, hidden_size=768, num_attention_heads=12, projection_dim=768, eos_token_id=2)
    )
    ours = {key.removeprefix("clip_l.transformer."): value for key, value in clip.cond_stage_model.state_dict().items()}
    flat = not any(key.startswith("text_model.") for key in text.state_dict())  # newer transformers leave the prefix out
    missing = text.load_state_dict(
        {key.removeprefix("text_model.") if flat else key: value.float().clone() for key, value in ours.items()}, strict=False
    ).missing_keys
    assert all("position_ids" in key for key in missing)
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=8)
    tokenizer = CLIPTokenizer.from_pretrained(COMFYUI / "comfy" / "sd1_tokenizer")
    others = (diffusers.DDIMScheduler(), None, None)  # scheduler, safety checker, feature extractor
    return diffusers.StableDiffusionPipeline(vae, text, tokenizer, unet, *others, requires_safety_checker=False)  # pyright: ignore[reportArgumentType]: it allows None


def _under_their_names(model, unet) -> dict[str, torch.Tensor]:
    names = {
        layer: name.removeprefix("unet.")
        for layer, name in pack("host.layer_names").layer_names(model).diffusers.items()
        if layer.startswith("diffusion_model.")
    }
    state = {}
    for key, value in model.model.named_parameters():
        layer, _, kind = key.rpartition(".")
        state[f"{names[layer]}.{kind}"] = value.detach().clone()
    assert state.keys() == unet.state_dict().keys()
    return state


def _inputs():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([500]), torch.randn(1, 77, 768, generator=generator)


def theirs(pipe) -> tuple[torch.Tensor, torch.Tensor]:
    """(noise prediction, text features) of diffusers' pipeline as it stands, adapters included."""
    x, t, context = _inputs()
    with torch.no_grad():
        ids = pipe.tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
        return pipe.unet(x, t, context).sample, pipe.text_encoder(ids)[0]


def ours(model, clip) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of the host, with the patches of `model` and `clip`."""
    import comfy.model_management

    x, t, context = _inputs()
    with torch.inference_mode():
        text = clip.encode_from_tokens(clip.tokenize(PROMPT))
        comfy.model_management.load_models_gpu([model])
        try:
            return model.model.diffusion_model(x, t, context=context).clone(), text
        finally:
            comfy.model_management.unload_all_models()  # the module is shared: it shall hold the file's weights again


def assert_same_pictures(model, clip, pipe, tolerance: float = 1e-5) -> None:
    """Do host and diffusers compute the same, within `tolerance` of the size of what they compute?"""
    for name, got, want in zip(("U-Net", "text encoder"), ours(model, clip), theirs(pipe), strict=True):
        error = ((got - want).norm() / want.norm()).item()
        assert error < tolerance, f"{name}: relative error {error:.2e}"
