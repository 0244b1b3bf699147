"""Text encoders of several families with random weights: the host's own classes, fewer layers, real vocabularies."""

from __future__ import annotations

import functools
from types import SimpleNamespace

from .host import BASE, start_host

_CLIP = {"num_hidden_layers": 3, "intermediate_size": 256}
_CONFIGS = {
    "clip_l_model_config": _CLIP,
    "clip_g_model_config": _CLIP,
    "clip_h_model_config": _CLIP,
    "t5xxl_model_config": {"num_layers": 2, "d_model": 128, "d_ff": 128, "num_heads": 2},
}


@functools.cache
def sd15(seed: int = 0):
    """CLIP-L: conditioning [1, 77, 768], after the final layer norm."""
    start_host()
    from comfy import sd1_clip

    return _make(sd1_clip.SD1ClipModel, sd1_clip.SD1Tokenizer, seed)


@functools.cache
def sd2(seed: int = 0):
    """OpenCLIP-H: conditioning [1, 77, 1024], the last but one layer."""
    start_host()
    from comfy.text_encoders import sd2_clip

    return _make(sd2_clip.SD2ClipModel, sd2_clip.SD2Tokenizer, seed, {"_model_config": _CLIP})


@functools.cache
def sdxl(seed: int = 0):
    """CLIP-L | CLIP-G: conditioning [1, 77, 2048], pooled [1, 1280]."""
    start_host()
    from comfy import sdxl_clip

    return _make(sdxl_clip.SDXLClipModel, sdxl_clip.SDXLTokenizer, seed)


@functools.cache
def pixart(seed: int = 0):
    """T5 without padding and without a mask: conditioning [1, tokens + 1, 128]."""
    start_host()
    from comfy.text_encoders import pixart_t5

    return _make(pixart_t5.pixart_te(), pixart_t5.PixArtTokenizer, seed)


@functools.cache
def mochi(seed: int = 0):
    """T5 padded to 256 rows with an attention mask: conditioning [1, 256, 128]."""
    start_host()
    from comfy.text_encoders import genmo

    return _make(genmo.mochi_te(), genmo.MochiT5Tokenizer, seed)


@functools.cache
def sd3(seed: int = 0):
    """CLIP-L | CLIP-G rows, then T5 rows: conditioning [1, 154, 4096], pooled [1, 2048]. T5 keeps its width, which the host joins."""
    start_host()
    import torch
    from comfy.text_encoders import sd3_clip

    options = {"t5xxl_model_config": {"num_layers": 1, "d_ff": 64, "num_heads": 1}}
    return _make(sd3_clip.sd3_clip(dtype_t5=torch.float16), sd3_clip.SD3Tokenizer, seed, options)


@functools.cache
def flux(seed: int = 0):
    """T5 rows as the conditioning [1, 256, 128], CLIP-L's pooled [1, 768]."""
    start_host()
    from comfy.text_encoders import flux

    return _make(flux.flux_clip(), flux.FluxTokenizer, seed)


@functools.cache
def half(family: str):
    """An encoder of the family whose weights are of 16 bits, as the files of most models have them."""
    import torch

    clip = _UNCACHED[family](0)
    with torch.inference_mode(False), torch.no_grad():
        clip.cond_stage_model.half()
    return clip


_UNCACHED = {"sdxl": sdxl.__wrapped__, "flux": flux.__wrapped__}
FAMILIES = {"sd15": sd15, "sd2": sd2, "sdxl": sdxl, "t5": pixart}


def _make(model_class, tokenizer_class, seed: int, options: dict | None = None):
    """The host's CLIP object around the classes of a family, as `load_text_encoder_state_dicts` puts it together."""
    import torch
    from comfy.sd import CLIP

    target = SimpleNamespace(clip=model_class, tokenizer=tokenizer_class, params={})
    with torch.inference_mode(False), torch.no_grad():
        clip = CLIP(target, embedding_directory=[str(BASE / "models" / "embeddings")], model_options={"dtype": torch.float32, **_CONFIGS, **(options or {})})
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in clip.cond_stage_model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.fill_(1.0)
            elif parameter.ndim < 2:
                parameter.zero_()
            elif "embedding" in name or "shared" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[1] ** -0.5)
    return clip
