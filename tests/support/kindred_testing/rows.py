"""Concepts that act on their tokens' rows, and the brute force that they are compared with: the base model with explicitly masked projections."""

from __future__ import annotations

import json
from types import SimpleNamespace

import torch

from .host import pack


def concept(
    base, text: str = "<v1>", word: str = "dog", vectors: int = 1, seed: int = 0, size: float = 0.05, low_rank: bool = False, reach: str = "token"
) -> SimpleNamespace:
    """A concept with random differences, in the form that Train Concept gives: `lora` with its metadata, `token`, and `deltas` layer -> dW."""
    generator, model = torch.Generator().manual_seed(seed), base[0].model
    layers = {name: layer for name, layer in model.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))}
    lora, deltas = {}, {}
    for name, layer in layers.items():
        out, width = layer.weight.shape
        if low_rank:
            up, down = torch.randn(out, 4, generator=generator) * size, torch.randn(4, width, generator=generator)
            lora |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(2.0)}
            deltas[name] = 0.5 * up @ down
        else:
            lora[f"{name}.diff"] = deltas[name] = torch.randn(out, width, generator=generator) * size
    of_token = {"clip_l": torch.randn(vectors, 768, generator=generator) * 0.02}
    rows, digests = pack("formats.token_rows"), pack("formats.manifest").digests(of_token)
    about = {rows.KEY: reach, rows.VECTORS: json.dumps(dict(zip(of_token, digests, strict=True)))}
    token = pack("formats.token").LearnedToken(text, word, of_token, about)
    metadata = {rows.KEY: reach, rows.TOKENS: json.dumps(digests), "modelspec.trigger_phrase": text}
    return SimpleNamespace(lora=pack("formats.concept_file").LearnedLora(lora, metadata), token=token, deltas=deltas)


def loaded(base, *concepts, strength: float = 1.0):
    """(model, clip) after Load Concept for each of `concepts`."""
    model, clip = base[0], base[1]
    for one in concepts:
        model, clip = pack("host.lora").apply_lora(model, clip, one.lora, strength)
        clip = pack("host.text").carry_tokens(clip, [one.token])
    return model, clip


def encode(clip, text: str):
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


@torch.inference_mode()
def sample(model, positive=None, negative=None, cfg: float = 3.0, steps: int = 2, batch: int = 1, guider=None, size: int = 8):
    import comfy.sample
    import comfy.samplers

    latent = torch.zeros(batch, 4, size, size)
    if guider is None:
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    return guider.sample(comfy.sample.prepare_noise(latent, 5), latent, comfy.samplers.sampler_object("euler"), sigmas, seed=5, disable_pbar=True)


def vector_rows(clip, text: str, words: int = 1) -> list[int]:
    """The rows of the vectors in a prompt and of `words` words behind each run of them, counted in the host's own token list."""
    chunks = clip.tokenize(text)["l"]
    flat = [torch.is_tensor(entry[0]) for chunk in chunks for entry in chunk]
    return sorted({at + more for at, vector in enumerate(flat) if vector for more in range(words + 1)})


def named(conditioning, positions, one, share: float = 1.0) -> list[tuple]:
    """What `BruteForce` masks: the features at `positions` get `share` of the concept's differences."""
    return [(conditioning[0][0][0, at], one.deltas, share) for at in positions]


class BruteForce:
    """Within it, the projections of `model` are K = W x + m (dW x), row by row in the plainest way."""

    def __init__(self, model, *named):
        self.model, self.named, self.handles = model, [one for some in named for one in some], []

    def __enter__(self):
        for name, layer in self.model.model.named_modules():
            if name.endswith(("attn2.to_k", "attn2.to_v")):
                self.handles.append(layer.register_forward_hook(lambda layer, args, out, name=name: self._changed(name, args[0], out)))

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def _changed(self, name, x, out):
        out = out.clone()
        for b in range(x.shape[0]):
            for r in range(x.shape[1]):
                for features, deltas, share in self.named:
                    if torch.equal(x[b, r], features):
                        out[b, r] += share * (deltas[name] @ x[b, r])
        return out


def assert_close(got: torch.Tensor, wanted: torch.Tensor, plain: torch.Tensor | None = None) -> None:
    """Equal to 1e-5 of the largest value; and not equal to `plain`, or the test would show nothing."""
    assert (got - wanted).abs().max() <= 1e-5 * max(1.0, float(wanted.abs().max()))
    assert plain is None or (got - plain).abs().max() > 1e-3
