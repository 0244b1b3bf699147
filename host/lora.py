"""Loading adapter files onto the host's models, by core's own readers and patches, with a report of weights that do not fit."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import comfy.lora
import comfy.lora_convert
import torch
from comfy.quant_ops import QuantizedTensor
from comfy.weight_adapter import BOFTAdapter, GLoRAAdapter, LoHaAdapter, LoKrAdapter, LoRAAdapter, OFTAdapter
from comfy.weight_adapter.base import weight_decompose

from ..formats import token_rows as rows
from . import token_rows
from .patcher import DIFFUSION, patched, pristine, without_injections
from .types import Model

log = logging.getLogger(__name__)

_PLAIN = ("alpha", "dora_scale", "diff", "diff_b", "set_weight", "w_norm", "b_norm")  # suffixes that core reads for a layer besides an adapter's own
_TEXT = ("text_encoder", "lora_te", "clip_l.", "clip_g.", "clip_h.", "t5xxl.")  # prefixes of text encoder keys in all layouts
_MAGNITUDE = {LoRAAdapter: 4, LoHaAdapter: 7, LoKrAdapter: 8, GLoRAAdapter: 5}  # index of DoRA's magnitude in an adapter's weights
# End of a key -> adapter type that core has no reader for.
_UNKNOWN = {
    "on_input": "(IA)^3 of LyCORIS",
    "ia3_l": "(IA)^3 of PEFT",
    "lora_E": "AdaLoRA",
    "vera_lambda_b": "VeRA",
    "vera_lambda_d": "VeRA",
    "oft_r": "OFT of PEFT",
    "oft_R": "OFT of PEFT",
    "boft_R": "BOFT of PEFT",
    "hra_u": "HRA",
    "lambda_layer": "T-LoRA",
    "bm": "GLoRA with a middle factor",
    "rescale": "rescaled OFT",
    "lora_embedding_A": "a LoRA of the token table",
    "lora_embedding_B": "a LoRA of the token table",
    "trainable_tokens_delta": "tokens trained by PEFT",
}


class Applied(NamedTuple):
    """A model and its CLIP with an adapter applied.

    notes          sentences about parts of the file that were left out or are ambiguous
    layers, texts  number of changed weights of the model and of the text encoders
    """

    model: Model
    clip: Any  # a CLIP, or None where none was given
    notes: list[str]
    layers: int = 0
    texts: int = 0

    def report(self) -> list[str]:
        """Lines to show on the node. Logs the notes as warnings."""
        for note in self.notes:
            log.warning("Kindred: %s", note)
        return [f"Changed: {self.layers} weights of the model, {self.texts} of the text encoder", *self.notes]


def apply_lora(model, clip, state: dict[str, torch.Tensor], strength: float = 1.0):
    """(model, clip) of `load_lora`. Logs its notes as warnings."""
    applied = load_lora(model, clip, state, strength)
    applied.report()
    return applied.model, applied.clip


def load_lora(model, clip, state: dict[str, torch.Tensor], strength: float = 1.0) -> Applied:
    """Clones of `model` and `clip` with the adapter patched in at `strength`.

    clip   None to leave out the adapter's weights of text encoders
    state  under core's names or any other names that core's loader reads. If its `metadata` says so (`formats.token_rows`), the weights that make
           keys and values of text act on the tokens' rows alone
    Raises ValueError if none of the weights fits, or if a DoRA meets weights that another pack quantized.
    """
    notes, metadata = list(getattr(state, "notes", [])), getattr(state, "metadata", {})
    if clip is None:
        text = [key for key in state if key.startswith(_TEXT)]
        state = {key: value for key, value in state.items() if not key.startswith(_TEXT)}
        if text:
            notes.append(f"{len(text)} weights of the text encoder are left out because no CLIP is connected.")
    if not state or strength == 0:
        return Applied(model, clip, notes)
    with without_injections(model):  # injections of an earlier run would change the layers' paths
        return _patched(model, clip, state, strength, notes, metadata)


def _patched(model, clip, state: dict[str, torch.Tensor], strength: float, notes: list[str], metadata: Mapping[str, str]) -> Applied:
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        known = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, known)
    state = comfy.lora_convert.convert_lora(dict(state))
    matched = comfy.lora.load_lora(state, known, log_missing=False)
    owner = {key: model if (key if isinstance(key, str) else key[0]).startswith(DIFFUSION) else clip.patcher for key in matched}
    fitting = {key: patch for key, patch in matched.items() if _fits(patch, _shape(key, owner[key]))}
    unread = sorted(state.keys() - _read_keys(state, known, matched))
    for key in unread:  # a part of an adapter would be a different adapter, so the whole layer is left out
        fitting.pop(known.get(_layer(key, known)), None)
    if not fitting:
        reason = _unknown_types([*unread, *state.keys()]) or "it was trained on another architecture. Load a checkpoint of the family that it was trained on."
        raise ValueError(f"None of the file's {len(state)} weights fits this model ({type(model.model).__name__}): {reason}")
    misfits = [str(key if isinstance(key, str) else key[0]) for key in matched.keys() - fitting.keys()]
    if unread or misfits:  # misfits: whole layers
        notes.append(_left_out(unread, misfits, len(fitting), type(model.model).__name__))
    fitting = {key: _exact(patch, key, owner[key]) for key, patch in fitting.items()}
    limited = _of_token_rows(model, fitting, metadata)
    tuned = model.clone()
    tuned.add_patches({key: patch for key, patch in fitting.items() if key not in limited}, strength)
    if limited:
        tuned = token_rows.attach(tuned, _on_rows(limited, fitting, metadata, strength))
    if clip is not None:
        clip = clip.clone()
        clip.add_patches(fitting, strength)
    layers = sum(key.startswith(DIFFUSION) for key in (key if isinstance(key, str) else key[0] for key in fitting))
    return Applied(tuned, clip, notes, layers, len(fitting) - layers)


def _of_token_rows(model, fitting: dict, metadata: Mapping[str, str]) -> set[str]:
    """The keys of `fitting` that act on the tokens' rows alone. ValueError if the file asks for it and the model has no layers where they can."""
    if metadata.get(rows.KEY, rows.ALL) == rows.ALL or rows.TOKENS not in metadata:
        return set()
    rows.reach(metadata[rows.KEY])
    found = {key for key in fitting if isinstance(key, str) and token_rows.is_text_layer(model, key)}
    if not found:
        raise ValueError(
            f"The concept acts on its token's rows of the text, but this model ({type(model.model).__name__}) has no layers where it can. "
            "Load a checkpoint of the family that it was trained on."
        )
    return found


def _on_rows(limited: set[str], fitting: dict, metadata: Mapping[str, str], strength: float) -> token_rows.Difference:
    names = tuple(name for name in metadata.get("modelspec.trigger_phrase", "").split(", ") if name)
    patches = {key: (strength, fitting[key], 1.0, None, None) for key in limited}
    return token_rows.Difference(rows.tags_of(metadata), names, strength, patches)


def _layer(key: str, known) -> str | None:
    """The layer of core's table `known` that `key` belongs to, or None."""
    while "." in key:
        key = key.rpartition(".")[0]
        if key in known:
            return key
    return None


def _left_out(unread: list[str], misfits: list[str], fitting: int, name: str) -> str:
    """A note about weights that were left out: keys nothing reads, and whole layers of another shape."""
    count, example = len(unread) + len(misfits), (misfits + unread)[0]
    start = f"{count} of the LoRA's {fitting + count} weights do not belong to this model ({name}) and are left out"
    text = sum(key.startswith(_TEXT) for key in unread + misfits)
    where = f", {'all' if text == count else text} of them in the text encoder" if text else ""
    return f"{start}{where}. {_unknown_types(unread) or 'It may have been trained on another model family.'} The first is {example!r}."


def _unknown_types(unread: list[str]) -> str:
    """A sentence that names the adapter types of unread keys for which core has no reader; "" if there are none."""
    types = {name for key in unread for end, name in _UNKNOWN.items() if key.removesuffix(".weight").endswith(end)}
    return f"the file holds {', '.join(sorted(types))}, which ComfyUI cannot apply." if types else ""


def _exact(patch, key, patcher):
    """`patch` changed so that the host computes what the library that trained it computes: DoRA, and LoKr with a Tucker kernel."""
    if isinstance(patch, LoKrAdapter) and patch.weights[7] is not None:
        patch = _without_kernel(patch)
    return _exact_dora(patch, key, patcher)


def _without_kernel(patch: LoKrAdapter) -> LoKrAdapter:
    """The same LoKr with its second factor multiplied out, because the host's Kronecker product fails on the three Tucker factors."""
    w1, _, alpha, w1_a, w1_b, w2_a, w2_b, kernel, magnitude = patch.weights
    w2 = torch.einsum("ij...,jr,ip->pr...", kernel.float(), w2_b.float(), w2_a.float()).contiguous()
    scale = 1.0 if alpha is None else alpha / w2_b.shape[0]
    return LoKrAdapter(patch.loaded_keys, (w1, w2 * scale, None, w1_a, w1_b, None, None, None, magnitude))


def _exact_dora(patch, key, patcher):
    """`patch` with its DoRA magnitude corrected for the host's norm; other patches unchanged.

    DoRA (Liu et al. 2024, eq. 5), PEFT and LyCORIS divide each row by its norm in W + D; the host divides it by its norm in W. The ratio
    of both norms goes into the magnitude. For magnitudes of columns the host uses W + D as well.
    """
    index = _MAGNITUDE.get(type(patch))
    magnitude = None if index is None else patch.weights[index]
    if magnitude is None or not _host_norms_base():
        return patch
    name, part = (key, None) if isinstance(key, str) else (key[0], key[1] if len(key) > 1 else None)
    stored = pristine(patcher, name)
    if not isinstance(stored, QuantizedTensor) and not stored.is_floating_point():
        raise ValueError("This adapter is a DoRA, which needs the values of the model's weights, but another pack quantized them. Load the model unquantized.")
    weight = patched(patcher, name, [], patcher.load_device)
    weight = weight if part is None else weight.narrow(*part)
    if magnitude.shape[0] != weight.shape[0]:
        return patch
    plain = type(patch)(patch.loaded_keys, tuple(None if i == index else value for i, value in enumerate(patch.weights)))
    changed = plain.calculate_weight(weight.clone(), name, 1.0, 1.0, None, lambda value: value)
    eps = torch.finfo(torch.float32).eps
    ratio = (weight.flatten(1).norm(dim=1) + eps) / (changed.flatten(1).norm(dim=1) + eps)
    corrected = magnitude.float() * ratio.to(magnitude.device).reshape(-1, *[1] * (magnitude.ndim - 1))
    return type(patch)(patch.loaded_keys, tuple(corrected if i == index else value for i, value in enumerate(patch.weights)))


@functools.cache
def _host_norms_base() -> bool:
    """Does this host divide DoRA's rows by their norm in W alone? Tested on its own function, since another version may follow the paper."""
    change = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    result = weight_decompose(torch.ones(2, 1), torch.eye(2), change, 1.0, 1.0, torch.float32, lambda value: value)
    return result[0, 0].item() > 1.5


def _read_keys(state, known, matched) -> set[str]:
    """The keys of `state` that core's loader has read."""
    keys = {f"{name}.{part}" for name in known for part in _PLAIN} & state.keys()
    for patch in matched.values():
        keys |= getattr(patch, "loaded_keys", set())
    return keys


def _shape(key, patcher) -> torch.Size | None:
    """The shape that core's patch key selects: of a weight's name, or of (name, (dimension, start, length)) for a part of it. None if unknown.

    Asked of the weight itself: the state dict of a GGUF model has the shapes of the packed bytes.
    """
    try:
        shape = list(pristine(patcher, key if isinstance(key, str) else key[0]).shape)
    except AttributeError:
        return None
    if not isinstance(key, str) and len(key) > 1 and key[1] is not None:
        shape[key[1][0]] = key[1][2]
    return torch.Size(shape)


def _fits(patch, shape: torch.Size | None) -> bool:
    """Can the host add this patch to a weight of that shape? (If not, the host logs an error at each sampling and skips the patch.)"""
    if shape is None:
        return False
    inputs = shape[1:].numel()
    if isinstance(patch, tuple):
        return patch[0] not in ("diff", "set") or patch[1][0].shape == shape
    if isinstance(patch, LoRAAdapter):
        up, down, _, mid, _, reshape = patch.weights
        if mid is not None:
            return (up.shape[0], down.shape[1], *mid.shape[2:]) == tuple(shape)
        return reshape is not None or (up.shape[0] == shape[0] and down.flatten(1).shape[1] == inputs)
    if isinstance(patch, LoHaAdapter):
        first, second, _, _, _, tucker, *_ = patch.weights
        if tucker is not None:
            return (first.shape[1], second.shape[1], *tucker.shape[2:]) == tuple(shape)
        return first.shape[0] == shape[0] and second.shape[1] == inputs
    if isinstance(patch, LoKrAdapter):
        w1, w2, _, w1_a, w1_b, w2_a, w2_b, tucker, _ = patch.weights
        rows = [whole if whole is not None else part for whole, part in ((w1, w1_a), (w2, w2_a))]
        columns = [whole if whole is not None else part for whole, part in ((w1, w1_b), (w2, w2_b))]
        sizes = rows[0].shape[0] * rows[1].shape[0], columns[0].shape[1] * columns[1].flatten(1).shape[1]
        return tucker is not None or sizes == (shape[0], inputs)
    if isinstance(patch, (OFTAdapter, BOFTAdapter)):
        count, size = patch.weights[0].shape[-3:-1]
        return count * size == shape[0] and patch.weights[1] is None and (patch.weights[2] is not None or isinstance(patch, OFTAdapter))
    if isinstance(patch, GLoRAAdapter):  # the factors of the added part, in one order or the other
        first, second = patch.weights[2:4]
        return any(b.shape[0] == shape[0] and a.flatten(1).shape[1] == inputs for b, a in ((first, second), (second, first)))
    return True
