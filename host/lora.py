"""LoRA state dicts on the host's models: the same readers and patches as core's LoraLoader, so that our images are its images."""

from __future__ import annotations

import logging

import comfy.lora
import comfy.lora_convert
import torch
from comfy.weight_adapter import LoHaAdapter, LoKrAdapter, LoRAAdapter, OFTAdapter

log = logging.getLogger(__name__)

_PLAIN = ("alpha", "dora_scale", "diff", "diff_b", "set_weight", "w_norm", "b_norm")  # what core reads of a layer besides an adapter's own
_TEXT = ("text_encoder", "lora_te")  # how keys of text encoders begin, in every layout


def apply_lora(model, clip, state: dict[str, torch.Tensor], strength: float = 1.0):
    """(model, clip) with the LoRA patched in at `strength`, on the text encoders too; the incoming ones stay as they are.

    clip   None where only the model is wanted: what was learned on text encoders is then left out
    state  under core's names or any that core's loader reads
    Raises ValueError when not one of its weights fits; logs one warning when some do not, which are then left out.
    """
    if clip is None:
        state = {key: value for key, value in state.items() if not key.startswith(_TEXT)}
    if not state or strength == 0:
        return model, clip
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    shapes = {key: value.shape for key, value in model.model.state_dict().items()}
    if clip is not None:
        known = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, known)
        shapes |= {key: value.shape for key, value in clip.cond_stage_model.state_dict().items()}
    state = comfy.lora_convert.convert_lora(dict(state))
    matched = comfy.lora.load_lora(state, known, log_missing=False)
    fitting = {key: patch for key, patch in matched.items() if _fits(patch, _shape(key, shapes))}
    if not fitting:
        raise ValueError(
            f"None of the file's {len(state)} weights fits this model ({type(model.model).__name__}): it was learned on another architecture. Load the kind of checkpoint that it was trained on."
        )
    unread = sorted(state.keys() - _read(state, known, matched))
    if unread or len(fitting) < len(matched):
        misfits = [str(key if isinstance(key, str) else key[0]) for key in matched.keys() - fitting.keys()]
        log.warning(
            "Kindred: %d of the LoRA's %d weights do not belong to this model (%s) and are left out, for example %r. It may have been learned on another kind of checkpoint.",
            len(unread) + len(misfits), len(fitting) + len(misfits) + len(unread), type(model.model).__name__, (misfits + unread)[0],
        )  # fmt: skip
    tuned = model.clone()
    tuned.add_patches(fitting, strength)
    if clip is not None:
        clip = clip.clone()
        clip.add_patches(fitting, strength)
    return tuned, clip


def _read(state, known, matched) -> set[str]:
    """The keys of `state` that core's loader has made something of."""
    keys = {f"{name}.{part}" for name in known for part in _PLAIN} & state.keys()
    for patch in matched.values():
        keys |= getattr(patch, "loaded_keys", set())
    return keys


def _shape(key, shapes: dict[str, torch.Size]) -> torch.Size | None:
    """The shape of the weight that core's patch key means: a name, or (name, (dimension, start, length)) for a part of it."""
    if isinstance(key, str):
        return shapes.get(key)
    shape = list(shapes.get(key[0], ()))
    if not shape:
        return None
    if len(key) > 1 and key[1] is not None:
        shape[key[1][0]] = key[1][2]
    return torch.Size(shape)


def _fits(patch, shape: torch.Size | None) -> bool:
    """Can the host add this patch to a weight of that shape? (It logs an error for each at every sampling and goes on without.)"""
    if shape is None:
        return False
    inputs = shape[1:].numel()
    if isinstance(patch, tuple):
        return patch[0] not in ("diff", "set") or patch[1][0].shape == shape
    if isinstance(patch, LoRAAdapter):
        up, down, _, mid, _, reshape = patch.weights
        return mid is not None or reshape is not None or (up.shape[0] == shape[0] and down.flatten(1).shape[1] == inputs)
    if isinstance(patch, LoHaAdapter):
        first, second, _, _, _, tucker, *_ = patch.weights
        return tucker is not None or (first.shape[0] == shape[0] and second.shape[1] == inputs)
    if isinstance(patch, LoKrAdapter):
        w1, w2, _, w1_a, w1_b, w2_a, w2_b, tucker, _ = patch.weights
        rows = [whole if whole is not None else part for whole, part in ((w1, w1_a), (w2, w2_a))]
        columns = [whole if whole is not None else part for whole, part in ((w1, w1_b), (w2, w2_b))]
        sizes = rows[0].shape[0] * rows[1].shape[0], columns[0].shape[1] * columns[1].flatten(1).shape[1]
        return tucker is not None or sizes == (shape[0], inputs)
    if isinstance(patch, OFTAdapter):
        return patch.weights[0].shape[0] * patch.weights[0].shape[1] == shape[0]
    return True
