"""The host's models as something that can be trained, without a second copy of them and without touching them.

Nodes run under inference mode, where the host also loads its weights: autograd refuses such tensors. A training copy here is the
module's structure again over the SAME storage, as ordinary tensors. Only what is trained gets memory of its own.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_base
import comfy.model_management
import torch
from comfy.clip_model import CLIPLayer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from . import text

interrupt_check = comfy.model_management.throw_exception_if_processing_interrupted


@contextmanager
def training_mode() -> Iterator[None]:
    """Gradients on, and the host told so (it then leaves out kernels that have none). Everything is restored, whatever happens."""
    before = comfy.model_management.in_training
    with torch.inference_mode(False), torch.enable_grad():
        comfy.model_management.in_training = True
        try:
            yield
        finally:
            comfy.model_management.in_training = before


def training_copy(module: torch.nn.Module) -> torch.nn.Module:
    """The module again, its parameters and buffers frozen aliases of the same storage: differentiable, and no memory of its own."""
    memo: dict[int, torch.Tensor] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        alias = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.shape, tensor.stride())
        memo[id(tensor)] = torch.nn.Parameter(alias, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else alias
    return copy.deepcopy(module, memo)


def supported_family(patcher) -> str:
    """The model's family, if it can be trained. ValueError that names it and the supported ones if not."""
    name = type(patcher.model).__name__
    kind = patcher.model.model_type.name
    if not isinstance(patcher.model.diffusion_model, UNetModel) or kind not in ("EPS", "V_PREDICTION"):
        raise ValueError(
            f"Train Concept cannot train this model ({name}, prediction {kind}). Supported are Stable Diffusion 1.x, 2.x and SDXL (U-Net, eps or v prediction)."
        )
    if patcher.model.concat_keys:
        raise ValueError(
            "This is an inpainting model, which expects a masked picture beside the noise. Train on the ordinary model of the same family; the result works on both."
        )
    return (
        "SDXL"
        if isinstance(patcher.model, comfy.model_base.SDXL)
        else "SD 2.x"
        if patcher.model.model_config.unet_config.get("context_dim") == 1024
        else "SD 1.x"
    )


class TrainableDenoiser:
    """A MODEL's denoising network as a training copy, with the host's own noise schedule around it."""

    def __init__(self, patcher):
        comfy.model_management.load_models_gpu([patcher])
        self.model = patcher.model
        self.sampling = patcher.get_model_object("model_sampling")
        self.network = training_copy(patcher.model.diffusion_model)
        self.device = patcher.load_device
        self.dtype = patcher.model.get_dtype_inference()

    @property
    def timesteps(self) -> int:
        return len(self.sampling.sigmas)

    def latents(self, encoded: torch.Tensor) -> torch.Tensor:
        """The VAE's latents [n, c, h, w] in the scale that the network works in."""
        return self.model.process_latent_in(encoded)

    def predict(self, latents, noise, timestep, prompts: list[tuple[torch.Tensor, torch.Tensor | None]]) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network says and what it should have said, both [n, c, h, w] float32.

        latents, noise  [n, c, h, w], the former as `latents` gives them
        timestep        [n], integers of the discrete schedule
        prompts         one (conditioning [1, positions, width], pooled or None) for each row
        The target is the noise (eps prediction) or v = alpha * noise - sigma * x0 (v prediction) of the variance-preserving process.
        """
        sigma = self.sampling.sigma(timestep.to(self.device))
        noisy = self.sampling.noise_scaling(sigma, noise, latents)
        inputs = self.sampling.calculate_input(sigma, noisy).to(self.dtype)
        output = self.network(inputs, self.sampling.timestep(sigma).float(), **self._conditions(prompts, noise), transformer_options={}).float()
        if self.model.model_type.name == "EPS":
            return output, noise
        scale = (1 + sigma.view(-1, 1, 1, 1) ** 2) ** 0.5
        return output, (noise - sigma.view(-1, 1, 1, 1) * latents) / scale

    def _conditions(self, prompts, noise) -> dict[str, torch.Tensor]:
        """The network's keyword arguments, by the host's own `extra_conds` (context; for SDXL pooled and size embeddings too)."""
        height, width = noise.shape[-2] * 8, noise.shape[-1] * 8
        rows: dict[str, list[torch.Tensor]] = {}
        for conditioning, pooled in prompts:
            given = {"cross_attn": conditioning, "device": self.device, "noise": noise[:1], "width": width, "height": height, "prompt_type": "positive"}
            if pooled is not None:
                given["pooled_output"] = pooled
            for name, condition in self.model.extra_conds(**given).items():
                rows.setdefault({"c_crossattn": "context"}.get(name, name), []).append(condition.cond.to(self.device, self.dtype))
        return {name: torch.cat(values) for name, values in rows.items()}


class TrainableText:
    """A CLIP's text encoders as a training copy; the CLIP that is passed in only tokenizes and so says which tokens are carried."""

    def __init__(self, clip):
        self.patcher = clip.load_model()
        self.model = training_copy(clip.cond_stage_model)
        self.layer = clip.layer_idx
        self.device = clip.patcher.load_device
        # The host computes text in float32 whatever the weights are, casting each at every use. Autograd would keep all those casts
        # until the backward pass, so casting once costs no more memory at the peak and saves the work of every step.
        for parameter in self.model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.float()
        for module in self.model.modules():
            if isinstance(module, CLIPLayer):
                module.forward = types.MethodType(_layer_forward, module)

    def encode(self, clip, prompt: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(conditioning [1, positions, width], pooled [1, width] or None) of `prompt`, differentiable in the vectors of carried tokens."""
        self._options()
        conditioning, pooled = self.model.encode_token_weights(clip.tokenize(prompt))[:2]
        return conditioning.to(self.device), None if pooled is None else pooled.to(self.device)

    def eos_features(self, clip, prompt: str) -> list[torch.Tensor]:
        """CLIP's text feature of `prompt`, one [width] for each encoder: the last layer at the first end-of-text token, after the
        final layer norm, not projected (ClassDiffusion's E).

        The encoder is causal, so nothing behind that token matters, and only the positions up to it are computed.
        """
        self._options()
        features = []
        for (key, part), sections in zip(self._clip_parts(clip), clip.tokenize(prompt).values(), strict=True):
            tokens = [entry[0] for entry in sections[0]]
            end = part.special_tokens["end"]
            length = next(index for index, token in enumerate(tokens) if isinstance(token, int) and token == end) + 1
            if length == len(tokens) and len(sections) > 1:
                raise ValueError(
                    f"The prompt {prompt[:60]!r}... is longer than one chunk of the text encoder {key}; the Semantic Preservation Loss needs a short one."
                )
            embedded = part.process_tokens([tokens], self.device)[0][:, :length]
            features.append(_causal_feature(part.transformer.text_model, embedded))
        return features

    def _clip_parts(self, clip) -> list[tuple[str, torch.nn.Module]]:
        keys = _keys_by_list_name(clip)
        parts = []
        for name in clip.tokenize(""):
            part = text.part_of_model(self.model, clip, keys[name])
            if not hasattr(part.transformer, "text_model"):
                raise ValueError(
                    f"The text encoder {keys[name]} is no CLIP: the Semantic Preservation Loss is defined on CLIP's end-of-text feature. Set spl_weight to 0 for this model."
                )
            parts.append((keys[name], part))
        return parts

    def _options(self) -> None:
        self.model.reset_clip_options()
        if self.layer is not None:
            self.model.set_clip_options({"layer": self.layer})
        self.model.set_clip_options({"execution_device": self.device})


def initializer_ids(clip, key: str, word: str) -> list[int]:
    """The vocabulary ids whose embeddings stand for `word` as a token's start.

    A word that prompts read as several tokens may still be ONE entry of the vocabulary, as the inside of longer words: that is how
    the papers' code means its rare `ktn` (entry 42170 of CLIP's vocabulary; as a prompt it would be `k`, `tn`).
    """
    ids = text.word_ids(clip, key, word)
    if len(ids) > 1:
        entry = text.encoder_tokenizers(clip)[key].tokenizer.get_vocab().get(word)
        return [entry] if entry is not None else ids
    return ids


def _keys_by_list_name(clip) -> dict[str, str]:
    """Name of a list in what `clip.tokenize` returns (`l`) -> the key of the encoder that reads it (`clip_l`)."""
    keys = list(text.encoder_tokenizers(clip))
    if len(keys) == 1:
        return dict.fromkeys(clip.tokenize(""), keys[0])
    return {key.removeprefix("clip_"): key for key in keys}


def _causal_feature(text_model, embedded: torch.Tensor) -> torch.Tensor:
    """The final-normed last hidden state [width] of the last position of `embedded` [1, positions, width]."""
    positions = text_model.embeddings.position_embedding.weight[: embedded.shape[1]].to(embedded)
    mask = torch.full((embedded.shape[1],) * 2, -torch.finfo(embedded.dtype).max, dtype=embedded.dtype, device=embedded.device).triu_(1)
    hidden, _ = text_model.encoder(embedded + positions, mask=mask)
    return text_model.final_layer_norm(hidden[:, -1:])[0, 0].float()


def _layer_forward(self, x, mask=None, optimized_attention=None):
    # The host adds in place, which overwrites what the layer norms keep for their backward pass.
    x = x + self.self_attn(self.layer_norm1(x), mask, optimized_attention)
    return x + self.mlp(self.layer_norm2(x))
