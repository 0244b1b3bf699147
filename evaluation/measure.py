"""Semantic drift of a token in a CLIP: encode the prompts, and compute the metrics of `drift` before and after TEA."""

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
from ..host import text as host_text
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
    """The drift of one token, as the report and the plot show it."""

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


@dataclass(frozen=True)
class ClassSide:
    """The class word's data: its input embeddings, its prompts' features, and the adjectives' distances."""

    pieces: dict[str, torch.Tensor]  # encoder -> [vocabulary pieces, width]
    prompts: dict[str, torch.Tensor]  # encoder -> [contexts, width]
    bare: dict[str, torch.Tensor]  # encoder -> [1, width]
    adjectives: torch.Tensor  # [70]


def measure_all(clip, tokens: str, class_words: str = "", base_clip=None, prompts: str = "", **settings) -> list[Drift]:
    """`measure` for each of `tokens`, written as for Token SLERP."""
    names = split_names(tokens) or list(host_text.carried_tokens(clip))
    if not names:
        raise ValueError("token is empty, and this CLIP carries none. Write it as in prompts, for example '<v1>'.")
    sides: dict[str, ClassSide] = {}
    drifts = []
    for name, word in zip(names, one_for_each(names, class_words), strict=True):
        drifts.append(measure(clip, name, word, base_clip, prompts, sides=sides, **settings))
    return drifts


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
    sides: dict[str, ClassSide] | None = None,
) -> Drift:
    """Measure one token.

    token        carried by `clip`, an `embedding:name`, or a plain word (for tuned encoders such as DreamBooth's)
    base_clip    encodes the prompts with the class word; None: `clip`
    prompts      one a line, `{}` in place of the subject; "" for the built-in ones
    with_class   the subject reads "<v1> dog"; False: "<v1>" alone, as textual inversion trains it
    sides        a cache of class words for the same base and prompts; filled here
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        check_share(name, value)
    templates = _templates(prompts)
    learned, word = _learned(clip, token, class_word)
    base = base_clip or clip
    plain = host_text.carry_tokens(clip, [learned]) if learned else clip
    subject = f"{token} {word}" if with_class else token
    sides = {} if sides is None else sides

    a0 = _features(plain, [f"a photo of a {subject}"])
    if word not in sides:
        b0 = _features(base, [f"a photo of a {word}"])
        if {key: value.shape[-1] for key, value in a0.items()} != {key: value.shape[-1] for key, value in b0.items()}:
            raise ValueError("clip and base_clip belong to different model families. Connect the base model's CLIP to base_clip.")
        sides[word] = _class_side(base, word, templates, b0)
    side = sides[word]
    scenes = [t.replace("{}", subject) for t in templates]
    a = _features(plain, scenes)
    versions = [(STATES[0], a, a0)]
    if learned:
        adjusted = host_text.carry_tokens(clip, [adjust_token(learned, word, side.pieces, alpha, beta, norm)])
        versions.append((STATES[1], _features(adjusted, scenes), _features(adjusted, [f"a photo of a {subject}"])))
    rotated, rotated0 = ({key: adjust(x[key], y[key], alpha, beta, norm) for key in x} for x, y in ((a, side.prompts), (a0, side.bare)))
    versions.append((STATES[2], rotated, rotated0))
    return Drift(
        token=token,
        class_word=word,
        vectors=_vectors(clip, token, learned, side.pieces, alpha, beta, norm),
        vocabulary={key: _norms(host_text.input_embeddings(base, key)) for key in side.pieces},
        class_norms={key: class_vector(value).norm().item() for key, value in side.pieces.items()},
        states=[_state(name, x, x0, side, temperature) for name, x, x0 in versions],
        class_intra=drift.intra(_joined(side.prompts), temperature),
        adjectives=side.adjectives,
        contexts=len(templates),
        alpha=alpha,
        beta=beta,
    )


def _class_side(base, word: str, templates: list[str], bare: dict[str, torch.Tensor]) -> ClassSide:
    phrases = _features(base, [f"a photo of a {adjective} {word}" for adjective in ADJECTIVES])
    return ClassSide(
        pieces={key: host_text.embed_word(base, key, word) for key in host_text.embedding_widths(base)},
        prompts=_features(base, [t.replace("{}", word) for t in templates]),
        bare=bare,
        adjectives=(_joined(phrases) - _joined(bare)).norm(dim=-1),
    )


def _state(name: str, x: dict[str, torch.Tensor], x0: dict[str, torch.Tensor], side: ClassSide, temperature: float) -> State:
    a, b = _joined(x), _joined(side.prompts)
    shares = [auto.kept([auto.Features(x[k][i : i + 1], side.prompts[k][i : i + 1], x0[k], side.bare[k]) for k in x], 0.0) for i in range(len(a))]
    shares = [share for share in shares if share is not None]
    distance = (_joined(x0) - _joined(side.bare)).norm().item()
    return State(
        name=name,
        inter=drift.inter(a, b, temperature),
        intra=drift.intra(a, temperature),
        kept=sum(shares) / len(shares) if shares else 1.0,
        rank=drift.rank(distance, side.adjectives),
        distance=distance,
    )


def _norms(table: torch.Tensor) -> torch.Tensor:
    """Norms of all rows, float32 on the CPU; in parts, because T5's table is large and may be stored in eight bits."""
    return torch.cat([part.detach().float().norm(dim=-1).cpu() for part in table.split(8192)])


def _vectors(clip, token, learned, pieces, alpha, beta, norm) -> list[TokenState]:
    own = learned.vectors if learned else {key: host_text.embed_word(clip, key, token) for key in pieces}
    states = []
    for key in (key for key in own if key in pieces):
        c = class_vector(pieces[key])
        for v in own[key].detach().float():
            new = adjust(v[None], c, alpha, beta, norm)
            states.append(TokenState(key, v.norm().item(), drift.cosine(v, c), new.norm().item(), drift.cosine(new, c)))
    return states


def _learned(clip, token: str, class_word: str) -> tuple[LearnedToken | None, str]:
    """(the token, or None for a plain word; the class word)."""
    learned = find_token(clip, token) if token in host_text.carried_tokens(clip) or token.startswith(FILE_PREFIX) else None
    if learned is None and token.startswith("<"):
        find_token(clip, token)  # raises, with what the clip carries
    word = class_word.strip() or (learned.class_word if learned else "")
    if not word:
        raise ValueError(f"{token!r} has no class word. Write it in class_word, for example 'dog'.")
    return learned, word


def _templates(prompts: str) -> list[str]:
    templates = [line.strip() for line in prompts.splitlines() if line.strip()] or list(CONTEXTS)
    without = [line for line in templates if "{}" not in line]
    if without:
        raise ValueError(f"The prompt {without[0]!r} has no {{}} in place of the subject. Write it there, for example 'a photo of a {{}} on the beach'.")
    if len(templates) < 2:
        raise ValueError("prompts has 1 line, but distances within a set need at least 2. Write another prompt, or leave prompts empty.")
    return templates


def _features(clip, prompts: list[str]) -> dict[str, torch.Tensor]:
    """Encoder -> sentence features [prompts, width], float32 on the CPU; in batches if all prompts are equally long."""
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
