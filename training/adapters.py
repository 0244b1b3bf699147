"""What is learned: cross-attention K and V, and the tokens' vectors."""

from __future__ import annotations

import logging
import re

import torch

from ..formats.token import LearnedToken
from ..host import text
from ..host.trainable_text import initializer_ids
from .concept import Concept

log = logging.getLogger(__name__)

CROSS_ATTENTION_KV = re.compile(r"\.attn2\.to_[kv]$")  # Custom Diffusion's choice, which ClassDiffusion keeps


class WeightDifference:
    """Full-rank training of chosen linear layers of a training copy: each becomes a float32 parameter of its own.

    `lora()` gives what was learned as differences under the names that core's loaders and its LORA_MODEL type use.
    """

    def __init__(self, network: torch.nn.Module, layers: re.Pattern = CROSS_ATTENTION_KV):
        self._base: dict[str, torch.Tensor] = {}
        self.parameters: dict[str, torch.nn.Parameter] = {}
        for name, module in network.named_modules():
            if layers.search("." + name) and getattr(module, "weight", None) is not None:
                self._base[name] = module.weight.detach()
                module.weight = torch.nn.Parameter(module.weight.detach().to(torch.float32, copy=True))
                self.parameters[name] = module.weight
        if not self.parameters:
            raise ValueError("This model has no cross-attention (attn2) K and V projections to train. Use a Stable Diffusion 1.x, 2.x or SDXL model.")

    def lora(self) -> dict[str, torch.Tensor]:
        """`diffusion_model.<layer>.diff` -> trained minus base, float32 on the CPU."""
        return {f"diffusion_model.{name}.diff": (parameter.detach() - self._base[name].float()).cpu() for name, parameter in self.parameters.items()}


class TokenVectors:
    """The trained input embeddings of the concepts' tokens: one parameter [vectors, width] for each concept and encoder."""

    def __init__(self, clip, concepts: list[Concept], device: torch.device, vectors: int = 1):
        self.concepts = concepts
        self.parameters: dict[tuple[str, str], torch.nn.Parameter] = {}
        for concept in concepts:
            taken = text.clash(clip, concept.token)
            if taken:
                raise ValueError(
                    f"The token {concept.token!r} is {taken} already, so prompts with it would change their meaning. Choose one that no prompt uses, for example '<v1>'."
                )
            for key in text.encoder_tokenizers(clip):
                start = _initial_vectors(clip, key, concept, vectors)
                self.parameters[concept.token, key] = torch.nn.Parameter(start.to(device))

    def carried(self) -> list[LearnedToken]:
        """The tokens over the live parameters: a CLIP that carries these passes the gradient on."""
        return [self._token(concept, lambda parameter: parameter) for concept in self.concepts]

    def learned(self, metadata: dict[str, str]) -> list[LearnedToken]:
        """The tokens as they are now, on the CPU and out of the graph."""
        return [self._token(concept, lambda parameter: parameter.detach().cpu().clone(), metadata) for concept in self.concepts]

    def _token(self, concept: Concept, take, metadata: dict[str, str] | None = None) -> LearnedToken:
        vectors = {key: take(parameter) for (token, key), parameter in self.parameters.items() if token == concept.token}
        return LearnedToken(concept.token, concept.class_word, vectors, dict(metadata or {}))


def _initial_vectors(clip, key: str, concept: Concept, vectors: int) -> torch.Tensor:
    """[vectors, width] float32: the initializer's embedding; the mean of them where the initializer is several tokens."""
    ids = initializer_ids(clip, key, concept.initializer or concept.class_word)
    if len(ids) > 1:
        log.info(
            "Kindred: the initializer %r of %r is %d tokens in %s; the mean of their embeddings is used.", concept.initializer, concept.token, len(ids), key
        )
    embedding = text.input_embeddings(clip, key)
    return embedding[torch.tensor(ids, device=embedding.device)].float().mean(dim=0, keepdim=True).repeat(vectors, 1).clone()
