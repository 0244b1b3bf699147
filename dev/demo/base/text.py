"""Stage 2: the text encoder, trained alone and first, then frozen.

Trained jointly with the UNet it does not learn to tell class words apart in any time that two cores have. SingleProcess it takes minutes: simple
heads must read every attribute from the end token, from the words and from the padding, and the cosine of two captions' end tokens must
be the weighted share of what they agree in (a Gram target), which gives the space a geometry: near captions are near.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from world import scene

from . import captions, loop, parts
from .settings import Settings

AGREE = {"class": 0.3, "colour": 0.22, "accessory": 0.24, "place": 0.16, "unknown": 0.08}
VALUES = [list(scene.CLASSES), ["", *scene.COLOURS], list(scene.ACCESSORIES), list(scene.PLACES)]


class _Heads(torch.nn.Module):
    """Linear readers of the four attributes, thrown away after this stage."""

    def __init__(self, encoder: torch.nn.Module):
        super().__init__()
        self.encoder: Any = encoder
        self.read: Any = torch.nn.ModuleList([torch.nn.ModuleList([torch.nn.Linear(parts.WIDTH, len(v)) for v in VALUES]) for _ in range(3)])

    def pools(self, tokens: torch.Tensor, end: torch.Tensor) -> list[torch.Tensor]:
        """The end token's features, the mean of the words', the mean of the padding's: three times [B, 768]."""
        x = _encode(self.encoder, tokens)
        position = torch.arange(tokens.shape[1], device=tokens.device)[None]
        words = (position <= end[:, None]).to(x)[..., None]
        return [x[torch.arange(len(x), device=x.device), end], (x * words).sum(1) / words.sum(1), (x * (1 - words)).sum(1) / (1 - words).sum(1)]


def _encode(encoder: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The host's text tower, trainable: its own forward insists on 77 tokens and adds in place, which breaks gradients. [B, L] -> [B, L, 768]"""
    from comfy.ldm.modules.attention import optimized_attention_for_device

    length = tokens.shape[1]
    x = encoder.embeddings.token_embedding(tokens) + encoder.embeddings.position_embedding.weight[:length]
    future = torch.full((length, length), torch.finfo(x.dtype).min, dtype=x.dtype, device=x.device).triu_(1)
    attention = optimized_attention_for_device(x.device, mask=True, small_input=True)
    for layer in encoder.encoder.layers:
        x = x + layer.self_attn(layer.layer_norm1(x), future, attention)
        x = x + layer.mlp(layer.layer_norm2(x))
    return encoder.final_layer_norm(x)


def _batch(settings: Settings, step: int):
    rng = random.Random(f"{settings.seed}|text|{step}")
    combos = scene.combinations()
    held = scene.held_out()
    full = step % 4 == 3  # the padding's far end is trained too, but it costs three times more
    length, count = (captions.LENGTH, settings.text_batch // 3) if full else (26, settings.text_batch)
    said = []
    while len(said) < count:
        combo = rng.choice(combos)
        if combo not in held:
            said.append(captions.say(combo if rng.random() < 0.85 else (combo[0], "", *combo[2:]), rng))
    tokens = torch.tensor([captions.padded(t, length) for t, _ in said])
    end = torch.tensor([len(t) - 1 for t, _ in said])
    labels = torch.tensor([[v.index(s) for v, s in zip(VALUES, slots, strict=False)] + [slots[4]] for _, slots in said])
    return tokens, end, labels


def trainable(settings: Settings) -> _Heads:
    """The encoder (``.encoder``) with its readers."""
    return _Heads(parts.text_encoder(settings.text_layers, settings.text_mlp))


def train(settings: Settings, work: Path, log: loop.Log, device: torch.device) -> torch.nn.Module:
    torch.manual_seed(settings.seed + 1)
    model = trainable(settings).to(device)
    weights = torch.tensor(list(AGREE.values()), device=device)

    def loss(step: int) -> dict[str, torch.Tensor]:
        tokens, end, labels = (x.to(device) for x in _batch(settings, step))
        with loop.autocast(device):
            pools = [pool.float() for pool in model.pools(tokens, end)]
        reads = [F.cross_entropy(head(pool), labels[:, i]) for pool, heads in zip(pools, model.read, strict=True) for i, head in enumerate(heads)]
        agree = ((labels[:, None] == labels[None]).float() * weights).sum(-1)
        e = F.normalize(pools[0], dim=-1)
        gram = (e @ e.T - agree).pow(2).mean()
        right = torch.stack([(head(pools[0]).argmax(-1) == labels[:, i]).float().mean() for i, head in enumerate(model.read[0])]).mean()
        return {"loss": torch.stack(reads).mean() + settings.gram * gram, "gram": gram, "right": right}

    loop.train("text", model, loss, settings.text_steps, settings.text_lr, work, log, every=50, ema=0.99)
    encoder = model.encoder.eval().requires_grad_(False)
    log.write(stage="text", **{f"swap_{k}": v for k, v in swaps(encoder, device).items()})
    return encoder


@torch.inference_mode()
def features(encoder: torch.nn.Module, prompts: list[tuple[int, ...]], device: torch.device) -> torch.Tensor:
    """Features [B, 77, 768] as the host's CLIP gives them: the last layer, after the final norm."""
    return encoder(torch.tensor([captions.padded(p) for p in prompts], device=device))[0].float()


def swaps(encoder: torch.nn.Module, device: torch.device, count: int = 24) -> dict[str, float]:
    """Mean end-token cosine of two prompts that differ in one attribute; a class swap must stay below 0.85."""
    rng, out = random.Random(7), {}
    for slot, name in enumerate(scene.ATTRIBUTES):
        cosines = []
        for _ in range(count):
            one = list(rng.choice(scene.combinations()))
            two = list(one)
            two[slot] = rng.choice([v for v in scene.ATTRIBUTES[name] if v != one[slot]])
            said = [captions.ids(scene.caption(*x)) for x in (one, two)]
            x = features(encoder, said, device)
            cosines.append(F.cosine_similarity(x[0, len(said[0]) - 1], x[1, len(said[1]) - 1], dim=0).item())
        out[name] = sum(cosines) / count
    return out
