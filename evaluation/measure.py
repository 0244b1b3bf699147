"""Semantic drift of a token on a CLIP: encodes the prompts and gathers `drift`'s numbers before and after TEA."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..embedding import auto
from ..embedding.carried import find_token, one_for_each, split_names
from ..embedding.prompt import sentence_features
from ..embedding.slerp import adjust, check_share
from ..embedding.tokens import adjust_token, class_vector
from ..formats.token import FILE_PREFIX, LearnedToken
from ..host import prompt as host_prompt
from ..host import text as encoders
from . import drift
from .phrases import ADJECTIVES, CONTEXTS

BATCH = 16  # prompts encoded at once
STATES = ("as learned", "Token SLERP", "Conditioning SLERP")


@dataclass(frozen=True)
class State:
    """The prompts' drift in one of `STATES`: sets of prompts against those with the class word, and within themselves."""

    name: str
    inter: drift.SetDistances
    intra: drift.SetDistances
    kept: float  # share of the scene that survives next to the token, mean over the contexts (embedding/auto)
    rank: int  # among the adjectives, by distance to the bare class phrase
    distance: float  # that distance


@dataclass(frozen=True)
class TokenState:
    """One input vector of the token in one encoder."""

    encoder: str
    norm: float
    cosine: float  # to the class word
    adjusted_norm: float
    adjusted_cosine: float


@dataclass(frozen=True)
class Drift:
    """All that the report and the plot show of one token."""

    token: str
    class_word: str
    vectors: list[TokenState]
    vocabulary: dict[str, torch.Tensor]  # encoder -> norms of all words
    class_norms: dict[str, float]
    states: list[State]
    class_intra: drift.SetDistances
    adjectives: torch.Tensor  # distances of "adjective class" from the class, [70]
    contexts: int
    alpha: float
    beta: float


def measure_all(clip, tokens: str, class_words: str = "", base_clip=None, prompts: str = "", **settings) -> list[Drift]:
    """`measure` for each of `tokens`, written as for Token SLERP."""
    names = split_names(tokens) or list(encoders.carried_tokens(clip))
    if not names:
        raise ValueError("token is empty and this CLIP carries none. Write it as prompts do, for example '<v1>'.")
    return [measure(clip, name, word, base_clip, prompts, **settings) for name, word in zip(names, one_for_each(names, class_words), strict=True)]


def measure(
    clip,
    token: str,
    class_word: str = "",
    base_clip=None,
    prompts: str = "",
    *,
    alpha: float = 0.2,
    beta: float = 0.5,
    norm: str = "midpoint",
    temperature: float = drift.TEMPERATURE,
    with_class: bool = True,
) -> Drift:
    """Measure one token.

    token        carried by `clip`, an `embedding:name`, or a plain word (for tuned encoders such as DreamBooth's)
    base_clip    encodes the prompts with the class word; None: `clip`
    prompts      one a line, `{}` where the subject stands; "" for the shipped ones
    with_class   the subject reads "<v1> dog"; False: "<v1>" alone, as textual inversion trains it
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        check_share(name, value)
    templates = _templates(prompts)
    learned, word = _learned(clip, token, class_word)
    base = base_clip or clip
    plain = encoders.carry_tokens(clip, [learned]) if learned else clip
    pieces = {key: encoders.embed_word(base, key, word) for key in encoders.embedding_widths(base)}
    subject = f"{token} {word}" if with_class else token

    a0, b0 = _features(plain, [f"a photo of a {subject}"]), _features(base, [f"a photo of a {word}"])
    if {key: value.shape[-1] for key, value in a0.items()} != {key: value.shape[-1] for key, value in b0.items()}:
        raise ValueError("clip and base_clip belong to different model families.")
    a, b = _features(plain, [_fill(t, subject) for t in templates]), _features(base, [_fill(t, word) for t in templates])
    versions = [(STATES[0], a, a0)]
    if learned:
        adjusted = encoders.carry_tokens(clip, [adjust_token(learned, word, pieces, alpha, beta, norm)])
        versions.append((STATES[1], _features(adjusted, [_fill(t, subject) for t in templates]), _features(adjusted, [f"a photo of a {subject}"])))
    turned = [{key: adjust(x[key], y[key], alpha, beta, norm) for key in x} for x, y in ((a, b), (a0, b0))]
    versions.append((STATES[2], *turned))

    adjectives = _joined(_features(base, [f"a photo of a {adjective} {word}" for adjective in ADJECTIVES]))
    origin = _joined(b0)
    others = (adjectives - origin).norm(dim=-1)
    states = [_state(name, x, x0, b, b0, others, temperature) for name, x, x0 in versions]
    return Drift(
        token, word, _vectors(clip, token, learned, pieces, alpha, beta, norm),
        {key: encoders.input_embeddings(base, key).detach().float().norm(dim=-1).cpu() for key in pieces},
        {key: class_vector(value).norm().item() for key, value in pieces.items()},
        states, drift.intra(_joined(b), temperature), others, len(templates), alpha, beta,
    )  # fmt: skip


def _state(name, x, x0, b, b0, others, temperature) -> State:
    a = _joined(x)
    shares = [auto.kept([auto.Features(x[k][i : i + 1], b[k][i : i + 1], x0[k], b0[k]) for k in x], 0.0) for i in range(len(a))]
    shares = [share for share in shares if share is not None]
    distance = (_joined(x0) - _joined(b0)).norm().item()
    kept = sum(shares) / len(shares) if shares else 1.0
    return State(name, drift.inter(a, _joined(b), temperature), drift.intra(a, temperature), kept, drift.rank(distance, others), distance)


def _vectors(clip, token, learned, pieces, alpha, beta, norm) -> list[TokenState]:
    own = learned.vectors if learned else {key: encoders.embed_word(clip, key, token) for key in pieces}
    states = []
    for key in (key for key in own if key in pieces):
        c = class_vector(pieces[key])
        for v in own[key].detach().float():
            new = adjust(v[None], c, alpha, beta, norm)
            states.append(TokenState(key, v.norm().item(), drift.cosine(v, c), new.norm().item(), drift.cosine(new, c)))
    return states


def _learned(clip, token: str, class_word: str) -> tuple[LearnedToken | None, str]:
    """(the token, or None for a plain word; the class word)."""
    learned = find_token(clip, token) if token in encoders.carried_tokens(clip) or token.startswith(FILE_PREFIX) else None
    if learned is None and token.startswith("<"):
        find_token(clip, token)  # raises, with what the clip carries
    word = class_word.strip() or (learned.class_word if learned else "")
    if not word:
        raise ValueError(f"The class word of {token!r} is not known. Write it, for example 'dog'.")
    return learned, word


def _templates(prompts: str) -> list[str]:
    templates = [line.strip() for line in prompts.splitlines() if line.strip()] or list(CONTEXTS)
    without = [line for line in templates if "{}" not in line]
    if without:
        raise ValueError(f"The prompt {without[0]!r} does not say where the subject stands. Write {{}} there, for example 'a photo of a {{}} on the beach'.")
    if len(templates) < 2:
        raise ValueError("prompts has 1 line; distances within a set need 2 at least.")
    return templates


def _fill(template: str, subject: str) -> str:
    return template.replace("{}", subject)


def _features(clip, prompts: list[str]) -> dict[str, torch.Tensor]:
    """Encoder -> sentence features [prompts, width], float32 on the CPU; in batches where all prompts are equally long."""
    parts: list[dict[str, torch.Tensor]] = []
    tokens = [clip.tokenize(prompt) for prompt in prompts]
    for batch in (tokens[i : i + BATCH] for i in range(0, len(tokens), BATCH)):
        merged = host_prompt.merge(batch)
        if merged is not None:
            parts.append(sentence_features(clip, merged, host_prompt.encode(clip, merged)))
            continue
        for one in batch:
            features = sentence_features(clip, one, host_prompt.encode(clip, one))
            parts.append({key: value.mean(dim=0, keepdim=True) for key, value in features.items()})
    return {key: torch.cat([part[key].float().cpu() for part in parts]) for key in parts[0]}


def _joined(features: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(features.values()), dim=-1)
