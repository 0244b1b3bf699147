"""The text encoders of a CLIP: their tokenizers, modules, vocabularies and input embeddings."""

from __future__ import annotations

import torch

from .carrying import tokenizer_parts
from .types import TokenLists


def encoder_tokenizers(clip) -> dict[str, object]:
    """Encoder key (`clip_l`, `clip_g`, `t5xxl`, ...) -> the host's SDTokenizer of that encoder, in the host's order.

    Only encoders that the model has: the host tokenizes for all encoders of a family, even if one is missing (SD 3 without T5, SDXL refiner).
    """
    model = clip.cond_stage_model
    return {part.embedding_key: part for name, part in tokenizer_parts(clip.tokenizer) if _model_of(model, name, part.embedding_key) is not None}


def embedding_widths(clip) -> dict[str, int]:
    """Encoder key -> width of its input embeddings. Embedding files are checked against it."""
    return {key: int(input_embeddings(clip, key).shape[-1]) for key in encoder_tokenizers(clip)}


def embedding_folders(clip) -> list[str]:
    """The folders in which the host looks up `embedding:name` for this CLIP."""
    for part in encoder_tokenizers(clip).values():
        if part.embedding_directory:
            return [part.embedding_directory] if isinstance(part.embedding_directory, str) else list(part.embedding_directory)
    return []


def encoder_model(clip, key: str) -> torch.nn.Module:
    """The host's SDClipModel of the encoder `key`."""
    return part_of_model(clip.cond_stage_model, clip, key)


def part_of_model(cond_stage_model: torch.nn.Module, clip, key: str) -> torch.nn.Module:
    """`encoder_model` in another instance of the same text model (a training copy). Raises ValueError if it has no such encoder."""
    for name, part in tokenizer_parts(clip.tokenizer):
        if part.embedding_key == key and (model := _model_of(cond_stage_model, name, key)) is not None:
            return model
    raise ValueError(f"This CLIP has no encoder {key!r}; it has {', '.join(encoder_tokenizers(clip)) or 'none'}.")


def word_ids(clip, key: str, text: str) -> list[int]:
    """The vocabulary ids of `text` in the encoder `key`, without start, end and padding."""
    part = encoder_tokenizers(clip)[key]
    end = -1 if part.tokenizer_adds_end_token else None
    return list(part.tokenizer(text)["input_ids"][part.tokens_start : end])


def input_embeddings(clip, key: str) -> torch.Tensor:
    """The token embedding matrix of the encoder `key`: [vocabulary, width], on any device and in any dtype."""
    return encoder_model(clip, key).transformer.get_input_embeddings().weight


def embed_word(clip, key: str, text: str) -> torch.Tensor:
    """The input embeddings of `text` in the encoder `key`: [pieces, width], float32 on the CPU, one row per vocabulary piece.

    Raises ValueError if `text` has no pieces.
    """
    ids = word_ids(clip, key, text)
    if not ids:
        raise ValueError(f"{text!r} gives no word in the vocabulary of {key}. Write the class of the subject, for example 'dog'.")
    table = encoder_model(clip, key).transformer.get_input_embeddings()
    with torch.no_grad():
        return table(torch.tensor([ids], device=table.weight.device), out_dtype=torch.float32)[0].to("cpu", torch.float32)


def by_encoder(clip, tokens: TokenLists) -> dict[str, list[list[tuple]]]:
    """The chunks of each encoder under its key (`clip_l`, ...) instead of the host's name (`l`)."""
    keys = encoder_tokenizers(clip)
    if isinstance(tokens, list):  # a single tokenizer returns its list without a name
        return {next(iter(keys)): tokens}
    named = {key: tokens[name] for key in keys for name in (key, key.removeprefix("clip_")) if name in tokens}
    return named or ({next(iter(keys)): next(iter(tokens.values()))} if len(keys) == len(tokens) == 1 else {})


def _model_of(cond_stage_model: torch.nn.Module, name: str, key: str):
    """The encoder for the tokenizer `key` at the attribute `name`; None if this model lacks it.

    In most families tokenizer and encoder have the same attribute name. Single-encoder families store the encoder's name in the attribute
    `clip` ("clip_t5xxl" tokenizes for "t5xxl").
    """
    for attribute in (name, key, name.removeprefix("clip_")):
        if attribute and hasattr(cond_stage_model, attribute):
            return getattr(cond_stage_model, attribute)
    if name and isinstance(getattr(cond_stage_model, "clip", None), str) and cond_stage_model.clip.removeprefix("clip_") == name.removeprefix("clip_"):
        return getattr(cond_stage_model, cond_stage_model.clip)
    return cond_stage_model if hasattr(cond_stage_model, "transformer") else None
