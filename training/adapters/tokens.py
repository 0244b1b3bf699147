"""Token vectors: the trained input embeddings of the concepts' tokens."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

import torch

from ...formats import token_rows
from ...formats.manifest import digests
from ...formats.token import LearnedToken
from ...host import text
from ...host.trainable_text import initializer_ids
from ...host.types import Clip
from ..data.concept import RARE, Concept, with_own_initializers
from ..settings import MAX_VECTORS

log = logging.getLogger(__name__)

NOISE = 0.05  # of a vector's length, on the copies of an initializer that has fewer vectors than the token


class TokenVectors:
    """The trained input embeddings of the concepts' tokens: one float32 parameter [vectors, width] for each concept and encoder.

    vectors         vectors for each token, 1 to 8. They start from the initializer's own vectors, in order
    direction_only  Directional Textual Inversion (Kim et al., 2025, arXiv 2512.13672): the length of each vector is that of the
                    encoder's mean vocabulary entry, only its direction is learned. Then call `before_step` on the unscaled gradients and
                    `after_step` after the optimizer's step
    encoders        keys of the encoders to learn for; None = `trained_encoders(clip)`. In the others a prompt reads the class word
    kappa           weight of the paper's von Mises-Fisher prior, which draws the direction to where it started; direction_only alone
    seed            decides the noise on repeated vectors
    rows            a key of `token_rows.ROWS`: on which rows of a prompt the network's differences act
    """

    def __init__(
        self,
        clip,
        concepts: list[Concept],
        device: torch.device,
        vectors: int = 1,
        direction_only: bool = False,
        encoders: Iterable[str] | None = None,
        kappa: float = 1e-4,
        seed: int = 0,
        rows: str = token_rows.ALL,
    ):
        if not 1 <= vectors <= MAX_VECTORS:
            raise ValueError(f"vectors is {vectors}; expected 1 to {MAX_VECTORS}.")
        keys = trained_encoders(clip) if encoders is None else list(encoders)
        unknown = set(keys) - set(text.encoder_tokenizers(clip))
        if unknown or not keys:
            raise ValueError(f"encoders names {', '.join(sorted(unknown)) or 'none'}; this CLIP has {', '.join(text.encoder_tokenizers(clip))}.")
        concepts = with_own_initializers(concepts)
        self.concepts, self.direction_only, self.kappa, self.rows = concepts, direction_only, kappa, rows
        self.parameters: dict[tuple[str, str], torch.nn.Parameter] = {}
        generator = torch.Generator().manual_seed(seed)
        for concept in concepts:
            check_token(clip, concept.token)
            for key in keys:
                start = _initial_vectors(clip, key, concept, vectors, generator)
                self.parameters[concept.token, key] = torch.nn.Parameter(start.to(device))
        if direction_only:
            length = {key: mean_length(clip, key) for key in keys}
            self._lengths = {name: length[name[1]] for name in self.parameters}
            self.after_step()
            self._start = {name: torch.nn.functional.normalize(parameter.detach(), dim=-1) for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def before_step(self) -> None:
        """Project each gradient onto the sphere (Riemannian gradient) and add the prior's. Does nothing without direction_only.

        With e = m v, the loss's gradient in the direction is m dL/de, the prior's -kappa mu (the paper's eq. for MAP under vMF).
        """
        if not self.direction_only:
            return
        for name, parameter in self.parameters.items():
            if parameter.grad is None:
                continue
            direction = torch.nn.functional.normalize(parameter, dim=-1)
            parameter.grad -= (self.kappa / self._lengths[name]) * self._start[name]
            parameter.grad -= (parameter.grad * direction).sum(dim=-1, keepdim=True) * direction

    @torch.no_grad()
    def after_step(self) -> None:
        """Scale each vector back to its length (retraction). Does nothing without direction_only."""
        if not self.direction_only:
            return
        for name, parameter in self.parameters.items():
            parameter.mul_(self._lengths[name] / torch.linalg.vector_norm(parameter, dim=-1, keepdim=True))

    def carried(self) -> list[LearnedToken]:
        """The tokens with the parameters themselves: a CLIP that carries them passes the gradient on."""
        return [self._token(concept, lambda parameter: parameter, self._in_training(concept)) for concept in self.concepts]

    def _in_training(self, concept: Concept) -> dict[str, str]:
        """What tells the rows of a token whose vectors change with every step, and tells them from those of the run's other tokens."""
        keys = {key for token, key in self.parameters if token == concept.token}
        return {token_rows.KEY: self.rows, token_rows.VECTORS: json.dumps(dict.fromkeys(sorted(keys), f"in training: {concept.token}"))}

    def learned(self, metadata: dict[str, str]) -> list[LearnedToken]:
        """The current tokens, detached and on the CPU."""
        tokens = [self._token(concept, lambda parameter: parameter.detach().cpu().clone(), metadata) for concept in self.concepts]
        if self.rows != token_rows.ALL:
            for token in tokens:
                tags = dict(zip(token.vectors, digests(token.vectors), strict=True))
                token.metadata.update({token_rows.KEY: self.rows, token_rows.VECTORS: json.dumps(tags)})
        return tokens

    def _token(self, concept: Concept, take, metadata: dict[str, str] | None = None) -> LearnedToken:
        vectors = {key: take(parameter) for (token, key), parameter in self.parameters.items() if token == concept.token}
        return LearnedToken(concept.token, concept.class_word, vectors, dict(metadata or {}))


def check_tokens(clip: Clip, concepts: list[Concept]) -> None:
    """Raises ValueError if a token already means something to this CLIP, or if no training prompt names it.

    Prompts are read as the encoder will read them with all tokens: "<v1>" inside another token's "my<v1>" names only that one.
    """
    tokens = [*text.carried_tokens(clip), *(concept.token for concept in concepts)]
    for concept in concepts:
        check_token(clip, concept.token)
        if not any(concept.token in text.mentions(prompt, tokens) for prompt in concept.prompts):
            raise ValueError(
                f"None of the captions names the token {concept.token!r}, so nothing would be learned for it. Write {{token}} in the captions or in "
                f"instance_prompt, as a word of its own. (The first one is {concept.prompts[0][:80]!r}.)"
            )


def check_token(clip: Clip, token: str) -> None:
    """Raises ValueError if `token` already means something to this CLIP."""
    taken = text.clash(clip, token)
    if taken:
        raise ValueError(
            f"The token {token!r} is already {taken}, so prompts with it would change their meaning. Choose one that no prompt uses, for example '<v1>'."
        )


def trained_encoders(clip: Clip) -> list[str]:
    """The encoders whose token vectors are trained by default: the CLIP ones, or all if there is no CLIP.

    T5 beside CLIP (SD 3, Flux) reads the class word instead, as in diffusers' pivotal tuning of these models: a backward pass through
    its billions of weights costs more than the rest of the step.
    """
    keys = list(text.encoder_tokenizers(clip))
    return [key for key in keys if hasattr(text.encoder_model(clip, key).transformer, "text_model")] or keys


def mean_length(clip: Clip, key: str) -> float:
    """The mean norm of the vocabulary's embeddings in the encoder `key`, without rows of zeros: Directional Textual Inversion's magnitude."""
    lengths = torch.linalg.vector_norm(text.input_embeddings(clip, key).float(), dim=-1)
    return float(lengths[lengths > 0].double().mean())


def _initial_vectors(clip: Clip, key: str, concept: Concept, vectors: int, generator: torch.Generator) -> torch.Tensor:
    """[vectors, width] float32: the initializer's embeddings in order.

    An initializer of more tokens than `vectors` gives the means of as many runs of them; one of fewer is repeated, with a little noise
    on the repetitions, without which they would start equal.
    """
    ids = initializer_ids(clip, key, concept.initializer, piece=concept.initializer in RARE)
    embedding = text.input_embeddings(clip, key)
    own = embedding[torch.tensor(ids, device=embedding.device)].float().cpu()
    if len(ids) > vectors:
        log.info(
            "Kindred: the initializer %r of %r is %d tokens in %s; the mean of their embeddings is used%s.",
            concept.initializer,
            concept.token,
            len(ids),
            key,
            "" if vectors == 1 else f", in {vectors} runs",
        )
        return torch.stack([run.mean(dim=0) for run in own.tensor_split(vectors)])
    if len(ids) == vectors:
        return own.clone()
    log.info(
        "Kindred: the initializer %r of %r is %d of %d vectors in %s; the others repeat it with noise.",
        concept.initializer,
        concept.token,
        len(ids),
        vectors,
        key,
    )
    start = own[torch.arange(vectors) % len(ids)]
    noise = torch.randn(start.shape, generator=generator) * (NOISE * torch.linalg.vector_norm(start, dim=-1, keepdim=True) / start.shape[-1] ** 0.5)
    noise[: len(ids)] = 0
    return start + noise
