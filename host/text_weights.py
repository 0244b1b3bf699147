"""Text encoders between two: CLIPs whose weights are interpolated."""

from __future__ import annotations

from . import adapters
from .patcher import same_weight
from .types import Clip

_CONSTANT = (".position_ids", ".logit_scale")  # core's own merges leave them, too


def between(tuned: Clip, base: Clip, omega: float) -> Clip:
    """A clone of `tuned` with the weights omega * tuned + (1 - omega) * base; `tuned` itself if the two are equal or omega is 1.

    It keeps the tokens of `tuned`. Computed by the host when the clone is loaded, as in core's CLIP Merge Simple. Raises ValueError for encoders
    of two families.
    """
    if omega == 1.0 or not (keys := changed(tuned, base)):
        return tuned
    clone, theirs = tuned.clone(), base.patcher.get_key_patches()
    for key in keys:
        clone.patcher.add_patches({key: theirs[key]}, 1.0 - omega, omega)
    return clone


def changed(tuned: Clip, base: Clip) -> list[str]:
    """The weights in which two CLIPs differ. Raises ValueError for encoders of two families."""
    mine, theirs = tuned.patcher.patches, base.patcher.patches
    patched = {key for key in mine.keys() | theirs.keys() if not _same(mine.get(key, []), theirs.get(key, []))}
    if tuned.cond_stage_model is base.cond_stage_model:
        return sorted(patched)
    own, other = tuned.patcher.get_key_patches(), base.patcher.get_key_patches()
    if own.keys() != other.keys() or any(own[key][0][0].shape != other[key][0][0].shape for key in own):
        raise ValueError(
            "`clip` and `base_clip` are text encoders of two families. Connect the text encoder after tuning to `clip`, and the same one before it to `base_clip`."
        )
    return [key for key in own if not key.endswith(_CONSTANT) and (key in patched or not same_weight(own[key][0][0], other[key][0][0]))]


def _same(mine: list, theirs: list) -> bool:
    return len(mine) == len(theirs) and all(adapters.same_patch(one, other) for one, other in zip(mine, theirs, strict=True))
