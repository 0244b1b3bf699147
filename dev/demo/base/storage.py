"""The base stored small, and expanded into the file that the stock CheckpointLoaderSimple takes.

A Stable Diffusion 1.5 file of this model has 303 MB, most of it zeros and random numbers. Stored are only the trained numbers: matrices and
kernels of the UNet and of the text encoder as 8-bit integers with one half-precision scale a row, the autoencoder and all vectors in half
precision, compressed with xz. Put back when expanding: the ten text layers that do nothing, the unused hidden units (zeros) and the frozen
token table (random, made from its seed). The tensors' hash is stored with them and checked.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
from pathlib import Path

import torch
from safetensors.torch import load, save, save_file

from . import parts

TEXT, UNET, VAE = "cond_stage_model.transformer.text_model.", "model.diffusion_model.", "first_stage_model."
TOKENS = TEXT + "embeddings.token_embedding.weight"
LAYERS, HIDDEN = 12, 3072
BLOCKS = {"encoder": (1, 3, 4, 5, 7, 8, 9, 11, 12, 13), "decoder": (3, 4, 5, 8, 9, 10, 13, 14, 15, 18)}
SCALE = "|scale"
SD15_FACTOR = 0.18215  # the host multiplies an SD 1.5 VAE's latents by it before the UNet sees them


def quantise(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric 8-bit integers of a [rows, ...] weight and their half-precision scale per row."""
    flat = weight.float().flatten(1)
    scale = (flat.abs().amax(1) / 127).clamp(min=2.0**-20).half()
    return (flat / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8).reshape(weight.shape), scale


def dequantise(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Back to half precision; every product is exact in single precision, so all machines round alike."""
    return (values.float() * scale.float().reshape(-1, *[1] * (values.ndim - 1))).half()


def fingerprint(state: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors, whatever order a file has them in."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def compact(vae: torch.nn.Module, encoder: torch.nn.Module, unet: torch.nn.Module, latent_std: float, integers: bool = True) -> dict[str, torch.Tensor]:
    """What is stored: the trained tensors under the checkpoint's names. ``integers=False`` keeps half precision, to see what 8 bits cost."""
    state: dict[str, torch.Tensor] = {}
    for prefix, module in ((TEXT, encoder), (UNET, unet), (VAE, vae)):
        for name, value in module.state_dict().items():
            value = value.detach().cpu()
            if prefix + name == TOKENS or (prefix != UNET and value.ndim > 1 and not value.any()):
                continue  # made again by ``full``; the UNet's zeros cost nothing in xz
            if integers and prefix != VAE and value.ndim > 1 and "position_embedding" not in name:
                state[prefix + name], state[prefix + name + SCALE] = quantise(value)
            else:
                state[prefix + name] = value.half()
    state[VAE + "vae_scale"] = torch.tensor(SD15_FACTOR * latent_std)
    state[VAE + "vae_shift"] = torch.tensor(0.0)
    return {name: value.contiguous() for name, value in state.items()}


def full(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The checkpoint's state dict, half precision, every key that the stock loader asks for."""
    state = {name: dequantise(value, stored[name + SCALE]) if name + SCALE in stored else value for name, value in stored.items() if not name.endswith(SCALE)}
    state[TOKENS] = parts.token_table().half()
    for i in range(LAYERS):
        layer = f"{TEXT}encoder.layers.{i}."
        shapes = {f"self_attn.{p}_proj": (parts.WIDTH, parts.WIDTH) for p in ("q", "k", "v", "out")}
        shapes |= {"mlp.fc1": (HIDDEN, parts.WIDTH), "mlp.fc2": (parts.WIDTH, HIDDEN)}
        for name, shape in shapes.items():
            for key, size in ((f"{layer}{name}.weight", shape), (f"{layer}{name}.bias", shape[:1])):
                state[key] = _grown(state.get(key), size)
        for name in ("layer_norm1", "layer_norm2"):
            state.setdefault(f"{layer}{name}.weight", torch.ones(parts.WIDTH, dtype=torch.float16))
            state.setdefault(f"{layer}{name}.bias", torch.zeros(parts.WIDTH, dtype=torch.float16))
    for half, i in ((half, i) for half, blocks in BLOCKS.items() for i in blocks):  # a block left out in training is an exact identity
        for j in (0, 2, 4):
            state.setdefault(f"{VAE}taesd_{half}.{i}.conv.{j}.weight", torch.zeros(64, 64, 3, 3, dtype=torch.float16))
            state.setdefault(f"{VAE}taesd_{half}.{i}.conv.{j}.bias", torch.zeros(64, dtype=torch.float16))
    return {name: value.contiguous() for name, value in state.items()}


def _grown(value: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
    """``value`` in the first corner of a zero tensor of ``shape``."""
    out = torch.zeros(shape, dtype=torch.float16)
    if value is not None:
        out[tuple(slice(0, n) for n in value.shape)] = value
    return out


def write(path: Path, stored: dict[str, torch.Tensor], preset: int = 6) -> Path:
    """Compresses ``stored`` into ``path``, the fingerprint of what it expands to included; ``preset`` is xz's."""
    metadata = {"fingerprint": fingerprint(full(stored)), "format": "kindred miniature base 1"}
    path.write_bytes(lzma.compress(save(stored, metadata), preset=preset))
    return path


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """What is stored, and the file's header. Raises ValueError when the file is damaged."""
    try:
        raw = lzma.decompress(path.read_bytes())
        return load(raw), json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    except (lzma.LZMAError, ValueError, EOFError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}); fetch it again, for example with `git checkout -- {path.name}`.") from error


@torch.no_grad()
def fill(path: Path, **modules: torch.nn.Module) -> None:
    """Puts the stored weights into networks of the training (``vae``, ``encoder``, ``unet``), up to 8-bit rounding. What is not stored becomes zero."""
    state = full(read(path)[0])
    for name, module in modules.items():
        prefix = {"vae": VAE, "encoder": TEXT, "unet": UNET}[name]
        for key, value in module.state_dict(keep_vars=True).items():
            value.copy_(state[prefix + key][tuple(slice(0, n) for n in value.shape)])


def expand(path: Path, target: Path) -> str:
    """Writes the checkpoint (beside, then renamed) and returns its fingerprint.

    Raises ValueError when the stored file is damaged or does not expand to the tensors it was made from.
    """
    stored, header = read(path)
    state = full(stored)
    found, expected = fingerprint(state), header.get("__metadata__", {}).get("fingerprint")
    if found != expected:
        raise ValueError(f"{str(path)!r} expands to tensors with the hash {found}, expected {expected}; fetch the file again.")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f"{target.name}.{os.getpid()}.part")
    save_file(state, beside)
    beside.replace(target)
    return found
