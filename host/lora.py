"""LoRA state dicts on the host's models: the same code as core's LoraLoader, so that our images are its images."""

from __future__ import annotations

import comfy.lora
import comfy.lora_convert
import comfy.sd
import torch


def apply_lora(model, clip, state: dict[str, torch.Tensor], strength: float = 1.0):
    """(model, clip) with the LoRA patched in at `strength`; the incoming ones stay as they are.

    Raises ValueError when not one of its keys fits the model: then it belongs to another architecture.
    """
    if not state or strength == 0:
        return model, clip
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        known = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, known)
    matched = comfy.lora.load_lora(comfy.lora_convert.convert_lora(dict(state)), known, log_missing=False)
    shapes = {key: value.shape for key, value in model.model.state_dict().items()}
    wrong = [
        key
        for key, patch in matched.items()
        if isinstance(patch, tuple) and patch[0] == "diff" and isinstance(key, str) and key in shapes and patch[1][0].shape != shapes[key]
    ]
    if not matched or len(wrong) == len(matched):
        raise ValueError(
            f"None of the file's {len(state)} weights fits this model ({type(model.model).__name__}): it was learned on another architecture. Load the kind of checkpoint that it was trained on."
        )
    return comfy.sd.load_lora_for_models(model, clip, state, strength, strength)
