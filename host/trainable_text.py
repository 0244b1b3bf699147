"""A CLIP's text encoders as something that gradients flow through: to carried tokens, and to what is attached to the encoder itself."""

from __future__ import annotations

import types
from typing import NamedTuple

import torch
from comfy.clip_model import CLIPLayer

from . import text
from .training import training_copy


class Encoded(NamedTuple):
    """A prompt as the host's models take it: conditioning [1, positions, width], pooled [1, width], and a family's further entries."""

    conditioning: torch.Tensor
    pooled: torch.Tensor | None
    extras: dict[str, torch.Tensor]


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

    def encode(self, clip, prompt: str) -> Encoded:
        """`prompt` as the model takes it, differentiable in the vectors of carried tokens."""
        self._options()
        conditioning, pooled, *rest = self.model.encode_token_weights(clip.tokenize(prompt))
        conditioning, pooled = conditioning.to(self.device), None if pooled is None else pooled.to(self.device)
        return Encoded(conditioning, pooled, dict(rest[0]) if rest else {})

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
