"""A CLIP's text encoders as something that gradients flow through: to carried tokens, and to what is attached to the encoder itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import comfy.model_management
import torch
from comfy.clip_model import CLIPTextModel

from . import text
from .checkpointing import make_differentiable
from .training import ordinary, training_copy
from .types import Clip


class Encoded(NamedTuple):
    """A prompt as the host's models take it: conditioning [1, positions, width], pooled [1, width], and a family's further entries."""

    conditioning: torch.Tensor
    pooled: torch.Tensor | None
    extras: dict[str, torch.Tensor]


class TrainableText:
    """A CLIP's text encoders as a training copy; the CLIP that is passed in only tokenizes and so says which tokens are carried.

    model     the copy, frozen and without memory of its own: adapters of the text encoder are attached to its layers
    has_clip  is one of the encoders a CLIP, on whose end-of-text feature the Semantic Preservation Loss is defined?
    The host computes text in float32 whatever the weights are. They are cast layer by layer, again in the backward pass, so an encoder
    of 16 bits never has a second copy of 32, and one that no gradient reaches costs what it costs the host.
    """

    def __init__(self, clip: Clip):
        self.patcher = ordinary(clip.patcher)
        comfy.model_management.load_models_gpu([self.patcher])
        self.model = training_copy(self.patcher.model)
        make_differentiable(self.model)
        self.layer = clip.layer_idx
        self.device = self.patcher.load_device
        self.has_clip = bool(self._clip_parts(clip))

    def encode(self, clip: Clip, prompt: str) -> Encoded:
        """`prompt` as the model takes it, differentiable in the vectors of carried tokens and in what is attached to `model`."""
        self._options()
        conditioning, pooled, *rest = self.model.encode_token_weights(clip.tokenize(prompt))
        conditioning, pooled = conditioning.to(self.device), None if pooled is None else pooled.to(self.device)
        return Encoded(conditioning, pooled, dict(rest[0]) if rest else {})

    def encode_many(self, clip: Clip, prompts: Iterable[str]) -> dict[str, Encoded]:
        """Each different prompt once: prompt -> `encode`."""
        return {prompt: self.encode(clip, prompt) for prompt in dict.fromkeys(prompts)}

    def eos_features(self, clip: Clip, prompt: str) -> list[torch.Tensor]:
        """CLIP's text feature of `prompt`, one [width] for each CLIP encoder: the last layer at the first end-of-text token, after the
        final layer norm, not projected (ClassDiffusion's E). Other encoders of the family (T5) have no such feature and are passed over.

        The encoder is causal, so nothing behind that token matters, and only the positions up to it are computed.
        """
        self._options()
        parts = self._clip_parts(clip)
        if not parts:
            raise ValueError(
                f"The text encoder of this model ({', '.join(text.encoder_tokenizers(clip))}) is no CLIP: the Semantic Preservation Loss is defined on "
                "CLIP's end-of-text feature. Set spl_weight to 0 for this model."
            )
        tokenized, features = clip.tokenize(prompt), []
        for name, (key, part) in parts.items():
            sections = tokenized[name]
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

    def _clip_parts(self, clip: Clip) -> dict[str, tuple[str, torch.nn.Module]]:
        """Name of a list in what `clip.tokenize` returns (`l`) -> key (`clip_l`) and module of the CLIP encoder that reads it."""
        names, keys = list(clip.tokenize("")), list(text.encoder_tokenizers(clip))
        parts = {}
        for key in keys:
            name = names[0] if len(names) == len(keys) == 1 else next((name for name in names if name in (key, key.removeprefix("clip_"))), None)
            part = text.part_of_model(self.model, clip, key)
            if name is not None and isinstance(getattr(part, "transformer", None), CLIPTextModel):
                parts[name] = key, part
        return {name: parts[name] for name in names if name in parts}

    def _options(self) -> None:
        self.model.reset_clip_options()
        if self.layer is not None:
            self.model.set_clip_options({"layer": self.layer})
        self.model.set_clip_options({"execution_device": self.device})


def initializer_ids(clip: Clip, key: str, word: str) -> list[int]:
    """The vocabulary ids whose embeddings stand for `word` as a token's start.

    A word that prompts read as several tokens may still be ONE entry of the vocabulary, as the inside of longer words: that is how
    the papers' code means its rare `ktn` (entry 42170 of CLIP's vocabulary; as a prompt it would be `k`, `tn`).
    """
    ids = text.word_ids(clip, key, word)
    if len(ids) > 1:
        entry = text.encoder_tokenizers(clip)[key].tokenizer.get_vocab().get(word)
        return [entry] if entry is not None else ids
    return ids


def _causal_feature(text_model, embedded: torch.Tensor) -> torch.Tensor:
    """The final-normed last hidden state [width] of the last position of `embedded` [1, positions, width]."""
    positions = text_model.embeddings.position_embedding.weight[: embedded.shape[1]].to(embedded)
    mask = torch.full((embedded.shape[1],) * 2, -torch.finfo(embedded.dtype).max, dtype=embedded.dtype, device=embedded.device).triu_(1)
    hidden, _ = text_model.encoder(embedded + positions, mask=mask)
    return text_model.final_layer_norm(hidden[:, -1:])[0, 0].float()
