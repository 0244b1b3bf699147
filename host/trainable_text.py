"""Trainable text encoders: gradients flow to carried tokens and to adapters of the encoder."""

from __future__ import annotations

from typing import NamedTuple

import comfy.model_management
import torch
from comfy.clip_model import CLIPTextModel

from . import text, text_rows
from .checkpointing import make_differentiable
from .training import ordinary, training_copy


class EncodedPrompt(NamedTuple):
    """A prompt as the host's models take it: conditioning [1, positions, width], pooled [1, width] or None, and a family's other entries.

    If the prompt names tokens on whose rows something is learned, `extras[text_rows.KEY]` is their mask, [1, positions, 1].
    """

    conditioning: torch.Tensor
    pooled: torch.Tensor | None
    extras: dict[str, torch.Tensor]


class TrainableText:
    """A training copy of a CLIP object's text encoders. The CLIP that its methods take only tokenizes, and its tokenizer carries the tokens.

    model     the frozen copy, which shares the memory of the weights; adapters of the text encoder are attached to its layers
    has_clip  is one of the encoders a CLIP? The Semantic Preservation Loss is defined on CLIP's end-of-text feature

    The host computes text in float32 in any case. Weights are cast layer by layer, and again in the backward pass, so a 16-bit encoder never
    has a full 32-bit copy, and an encoder without gradients costs no more than in the host.
    """

    def __init__(self, clip):
        self.patcher = ordinary(clip.patcher)
        comfy.model_management.load_models_gpu([self.patcher])
        self.model = training_copy(self.patcher.model)
        make_differentiable(self.model)
        self.layer = clip.layer_idx
        self.device = self.patcher.load_device
        self.has_clip = bool(self._clip_parts(clip))

    def encode(self, clip, prompt: str) -> EncodedPrompt:
        """Encode `prompt`, differentiable in the vectors of carried tokens and in the adapters of `model`."""
        self._set_options()
        tokens = clip.tokenize(prompt)
        conditioning, pooled, *rest = self.model.encode_token_weights(tokens)
        conditioning, pooled = conditioning.to(self.device), None if pooled is None else pooled.to(self.device)
        extras, rows = dict(rest[0]) if rest else {}, text_rows.rows_in(clip, tokens)
        if rows:
            extras[text_rows.KEY] = text_rows.mask(rows, conditioning.shape[1])
        return EncodedPrompt(conditioning, pooled, extras)

    def eos_features(self, clip, prompt: str) -> list[torch.Tensor]:
        """CLIP's text feature of `prompt` (ClassDiffusion's E), one [width] per CLIP encoder.

        It is the last layer at the first end-of-text token, after the final layer norm, without projection. The encoder is causal, so only the
        positions up to that token are computed. Other encoders of the family (T5) have no such feature and are skipped.
        Raises ValueError if there is no CLIP encoder, or if the prompt is longer than one chunk.
        """
        self._set_options()
        parts = self._clip_parts(clip)
        if not parts:
            raise ValueError(
                f"The text encoder of this model ({', '.join(text.encoder_tokenizers(clip))}) is not a CLIP, but the Semantic Preservation Loss is defined "
                "on CLIP's end-of-text feature. Set spl_weight to 0 for this model."
            )
        tokenized, features = clip.tokenize(prompt), []
        for name, (key, part) in parts.items():
            sections = tokenized[name]
            tokens = [entry[0] for entry in sections[0]]
            end = part.special_tokens["end"]
            length = next(index for index, token in enumerate(tokens) if isinstance(token, int) and token == end) + 1
            if length == len(tokens) and len(sections) > 1:
                raise ValueError(
                    f"The prompt is longer than one chunk of the text encoder {key}, which is too long for the Semantic Preservation Loss. "
                    f"Shorten it: {prompt[:60]!r}..."
                )
            embedded = part.process_tokens([tokens], self.device)[0][:, :length]
            features.append(_causal_feature(part.transformer.text_model, embedded))
        return features

    def _clip_parts(self, clip) -> dict[str, tuple[str, torch.nn.Module]]:
        """Name of a token list of `clip.tokenize` (`l`) -> key (`clip_l`) and module of the CLIP encoder that reads the list."""
        names, keys = list(clip.tokenize("")), list(text.encoder_tokenizers(clip))
        parts = {}
        for key in keys:
            name = names[0] if len(names) == len(keys) == 1 else next((name for name in names if name in (key, key.removeprefix("clip_"))), None)
            part = text.part_of_model(self.model, clip, key)
            if name is not None and isinstance(getattr(part, "transformer", None), CLIPTextModel):
                parts[name] = key, part
        return {name: parts[name] for name in names if name in parts}

    def _set_options(self) -> None:
        self.model.reset_clip_options()
        if self.layer is not None:
            self.model.set_clip_options({"layer": self.layer})
        self.model.set_clip_options({"execution_device": self.device})


def initializer_ids(clip, key: str, word: str, piece: bool = False) -> list[int]:
    """The vocabulary ids whose embeddings initialize a token from `word`.

    A word that prompts split into several ids may still be ONE entry of the vocabulary, as a piece inside longer words. The papers' code uses
    its rare words this way (`ktn` is entry 42170 of CLIP's vocabulary; in a prompt it would be `k`, `tn`).
    piece  take that entry also where the word has one of its own, as their code does: `pll` in a prompt is a television series
    """
    ids = text.word_ids(clip, key, word)
    if len(ids) > 1 or piece:
        entry = text.encoder_tokenizers(clip)[key].tokenizer.get_vocab().get(word)
        return [entry] if entry is not None else ids
    return ids


def _causal_feature(text_model, embedded: torch.Tensor) -> torch.Tensor:
    """The last hidden state [width], after the final norm, at the last position of `embedded` [1, positions, width]."""
    positions = text_model.embeddings.position_embedding.weight[: embedded.shape[1]].to(embedded)
    mask = torch.full((embedded.shape[1],) * 2, -torch.finfo(embedded.dtype).max, dtype=embedded.dtype, device=embedded.device).triu_(1)
    hidden, _ = text_model.encoder(embedded + positions, mask=mask)
    return text_model.final_layer_norm(hidden[:, -1:])[0, 0].float()
