"""A prompt that names concepts, encoded together with its class prompt and adjusted: what Text Encode Concept does."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..formats.token import LearnedToken
from ..host import prompt as host_prompt
from ..host import text as host_text
from . import align as alignment
from . import auto
from .conditioning import adjust_conditioning
from .layout import blocks
from .slerp import check_share


@dataclass(frozen=True)
class Encoded:
    """Both conditionings, the class prompt, the rotation that was used and how it was chosen, and likely mistakes in the prompt."""

    conditioning: list
    class_conditioning: list
    class_text: str
    alpha: float
    choice: auto.Choice | None
    hints: tuple[str, ...] = ()
    other_anchor: bool = False

    def describe(self) -> str:
        """The report for the artist, a few lines."""
        anchor = "another text encoder (class_clip)" if self.other_anchor else "the concept's own text encoder, as in the paper"
        return "\n".join([f"class prompt: {self.class_text}, by {anchor}", self._alpha(), *self.hints])

    def _alpha(self) -> str:
        if self.choice is None:
            return f"alpha {self.alpha:.3f}"
        if self.choice.kept is None:
            return "alpha 0 (auto): the prompt has no scene besides the concept"
        how = f"keeps {self.choice.kept:.0%} of the scene" + (f", {self.choice.kept_before:.0%} without" if self.alpha else " as it is")
        return f"alpha {self.alpha:.3f} (auto): {how}"


def encode_concept(
    clip,
    text: str,
    *,
    class_clip=None,
    alpha: float | None = 0.2,
    beta: float = 0.5,
    norm: str = "midpoint",
    align: str = "token",
    keep: float = 0.8,
    start: float = 0.0,
    end: float = 1.0,
) -> Encoded:
    """Encode `text` and its class prompt (each token replaced by its class word), and rotate the first toward the second.

    clip         carries the tokens;  class_clip   encodes the class prompt (an untuned encoder is the steadier anchor); None = clip
    alpha        None = the smallest that keeps the share `keep` of the context, see `auto`
    align        `token` or `position`, see `align`; by position the class prompt is padded by the encoder's own rule
    Raises ValueError if the prompt names no token, a token has no class word, or the two text encoders are of different families.
    """
    other_anchor, class_clip = class_clip is not None, class_clip or clip
    carried = host_text.carried_tokens(clip)
    class_text = class_prompt(text, carried)
    tokens, class_tokens = clip.tokenize(text), class_clip.tokenize(class_text)
    if align == "position":
        class_tokens = host_prompt.pad_like(class_clip, class_tokens, tokens)
    conditioning, class_conditioning = host_prompt.encode(clip, tokens), host_prompt.encode(class_clip, class_tokens)
    choice = None
    if alpha is None:
        check_share("keep", keep)
        padded = align == "position"  # then the class prompt was encoded longer than it is
        other = None if padded else (class_tokens, class_conditioning)
        choice = auto.choose(concept_features(clip, class_clip, text, (tokens, conditioning), other), keep)
        alpha = choice.alpha
    partners = token_partners(clip, tokens, class_tokens) if align == "token" else None
    adjusted = adjust_conditioning(conditioning, class_conditioning, alpha, beta, norm, partners, start, end)
    class_words = {name: carried[name].class_word for name in host_text.mentions(text, carried)}
    hints = host_text.wrong_classes(text, class_words) + [line for word in dict.fromkeys(class_words.values()) for line in host_text.spelling_hints(clip, word)]
    return Encoded(adjusted, class_conditioning, class_text, alpha, choice, tuple(hints), other_anchor)


def class_prompt(text: str, carried: dict[str, LearnedToken]) -> str:
    """`text` with each token replaced by its class word. Raises ValueError if it names no token."""
    names = host_text.mentions(text, carried)
    if not names:
        known = ", ".join(map(repr, carried)) or "none: connect the clip of Train Concept or Load Concept"
        raise ValueError(f"The prompt {text!r} names no token of this CLIP (it carries {known}).")
    for name in names:
        if not carried[name].class_word.strip():
            raise ValueError(f"The token {name!r} has no class word. Give it one with Token SLERP (alpha 0, beta 0 leaves the token as it is).")
    return host_text.replace_tokens(text, {name: token.class_word for name, token in carried.items()})


def token_partners(clip, tokens, class_tokens) -> dict[str, torch.Tensor]:
    """Encoder key -> partner rows (`align.by_token`) of two prompts, tokenized for CLIPs of one family."""
    own, other = host_prompt.by_encoder(clip, tokens), host_prompt.by_encoder(clip, class_tokens)
    return {key: alignment.by_token(_ids(own[key]), _ids(other[key]), alignment.Special(*host_prompt.special_ids(clip, key))) for key in own if key in other}


def text_partners(clip, text: str, class_text: str) -> dict[str, torch.Tensor]:
    """`token_partners` of two prompts given as text. An empty `class_text` means `text` with its tokens replaced by their class words."""
    if clip is None or not text.strip():
        raise ValueError("align = token needs to know the prompts: connect clip and write text, or use Text Encode Concept, which does so by itself.")
    class_text = class_text if class_text.strip() else class_prompt(text, host_text.carried_tokens(clip))
    return token_partners(clip, clip.tokenize(text), clip.tokenize(class_text))


def sentence_rows(clip, tokens) -> dict[str, tuple[list[int], int]]:
    """Encoder key -> (the row of the first end token of each chunk, count of rows): the row whose output summarizes the chunk."""
    found = {}
    for key, chunks in host_prompt.by_encoder(clip, tokens).items():
        end, rows, offset = host_prompt.special_ids(clip, key)[1], [], 0
        for ids in _ids(chunks):
            rows.append(offset + next((i for i, token in enumerate(ids) if not torch.is_tensor(token) and token == end), len(ids) - 1))
            offset += len(ids)
        found[key] = (rows, offset)
    return found


def sentence_features(clip, tokens, conditioning) -> dict[str, torch.Tensor]:
    """Encoder key -> its output at the end token of each chunk, [chunks, width], from the first entry of a conditioning."""
    cond, extra = conditioning[0][0], conditioning[0][1]
    places, features = sentence_rows(clip, tokens), {}
    for block in blocks(cond, extra.get("pooled_output")):
        part = block.of(cond)[0]
        key = block.encoder or next((key for key, (_, count) in reversed(places.items()) if count == part.shape[0]), "")
        rows = [row for row in places[key][0] if row < part.shape[0]] if key in places else [part.shape[0] - 1]
        features[block.encoder] = part[rows].float()
    return features


def concept_features(clip, class_clip, text: str, own=None, other=None) -> list[auto.Features]:
    """The four prompts of `auto` for `text`, encoded; one for each encoder that the conditioning shows.

    own, other  (tokens, conditioning) of `text` and of its class prompt, if they are already encoded
    """
    carried = host_text.carried_tokens(clip)
    named = [carried[name] for name in host_text.mentions(text, carried)]
    bare = "a photo of a " + " and a ".join(f"{token.text} {token.class_word}" for token in named)
    wanted = (
        (clip, text, own),
        (class_clip, class_prompt(text, carried), other),
        (clip, bare, None),
        (class_clip, class_prompt(bare, carried), None),
    )
    four = []
    for each, words, encoded in wanted:
        if encoded is None:
            tokens = each.tokenize(words)
            encoded = tokens, host_prompt.encode(each, tokens)
        four.append(sentence_features(each, *encoded))
    features = []
    for key in (key for key in four[0] if key in four[1]):
        v, c = four[0][key], four[1][key]
        if v.shape[-1] != c.shape[-1]:
            raise ValueError(f"The conditioning is {v.shape[-1]} wide and the class conditioning {c.shape[-1]}: class_clip is of another model family.")
        count = min(len(v), len(c))
        features.append(auto.Features(v[:count], c[:count], four[2][key], four[3][key]))
    return features


def _ids(chunks) -> list[list]:
    return [[entry[0] for entry in chunk] for chunk in chunks]
