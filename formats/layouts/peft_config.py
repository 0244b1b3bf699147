"""PEFT's configuration of an adapter: what its tensors are multiplied by, and what else would have to be done with them.

It lies in `adapter_config.json` beside PEFT's own file, or in the metadata of diffusers' (`lora_adapter_metadata`), there with the
part of the pipeline in front of each key (`unet.r`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from .. import text_file

KEY = "lora_adapter_metadata"
_DEFAULTS = {"LORA": ("lora_alpha", 8.0), "LOHA": ("alpha", 8.0), "LOKR": ("alpha", 8.0)}  # PEFT's, where the configuration leaves alpha out
_STARTS = ("", "none", "true", "false", "gaussian", "eva", "orthogonal", "mica")  # all other ways to start an adapter may have changed the base model's weights
_UNREAD = ("layer_replication", "use_qalora", "alora_invocation_tokens", "arrow_config", "use_bdlora", "monteclora_config", "kasa_config")
_LONGEST = 200  # characters of a pattern


_Usual = TypeVar("_Usual", bound="float | None")


@dataclass(frozen=True)
class Settings:
    """One component's configuration.

    kind           LORA, LOHA or LOKR
    alpha, rank    as for all layers without a pattern; rank None = that of the tensors
    rank_stable    divide by sqrt(rank) instead of rank (rsLoRA)
    """

    kind: str = "LORA"
    alpha: float = 8.0
    rank: float | None = None
    rank_stable: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, float] = field(default_factory=dict)

    def scale(self, name: str, rank: int | None = None) -> float:
        """What up @ down of the layer `name` (as the file calls it, without the component) is multiplied by. `rank`: of its tensors, where they say it."""
        divisor = rank or _by_pattern(self.ranks, name, self.rank)
        if not divisor or not divisor > 0:
            raise ValueError(f"PEFT's configuration gives no rank for the layer {name!r}. Export the adapter again.")
        return _by_pattern(self.alphas, name, self.alpha) / (math.sqrt(divisor) if self.rank_stable else divisor)


def read(metadata: Mapping[str, str]) -> dict[str, Settings]:
    """Component -> its settings, "" for a configuration that names none. ValueError where the file cannot be read, or asks for more than we do."""
    try:
        found = text_file.parse_json(metadata.get(KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The adapter's configuration is not readable ({type(error).__name__}). Export the adapter again.") from error
    if not isinstance(found, dict):
        raise ValueError("The adapter's configuration is not a table of settings. Export the adapter again.")
    components: dict[str, dict[str, object]] = {}
    for key, value in found.items():
        component, dot, setting = key.rpartition(".")
        components.setdefault(component if dot else "", {})[setting] = value
    return {component: _settings(component, values) for component, values in components.items()}


def _settings(component: str, values: Mapping[str, object]) -> Settings:
    where = f"of {component!r} " if component else ""
    kind = str(values.get("peft_type") or "LORA").rpartition(".")[2].upper()
    if kind not in _DEFAULTS:
        raise ValueError(
            f"The adapter {where}is of PEFT's type {kind}, which ComfyUI has no way to apply. LoRA (with DoRA and rsLoRA), LoHa and LoKr can be loaded."
        )
    start = str(values.get("init_lora_weights", "")).lower()
    if start not in _STARTS:
        raise ValueError(
            f"The adapter {where}was started with {start!r}, which may have changed the base model's own weights. "
            "Convert it to a plain LoRA first: PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    unread = [name for name in _UNREAD if values.get(name)]
    if unread:
        raise ValueError(f"The adapter {where}uses PEFT's {unread[0]!r}, which ComfyUI has no way to apply.")
    key, usual = _DEFAULTS[kind]
    alpha = values.get(key)
    return Settings(
        kind,
        usual if alpha is None else _number(alpha, key),
        _number(values["r"], "r") if values.get("r") is not None else None,
        bool(values.get("use_rslora")),
        _pattern(values.get("alpha_pattern"), "alpha_pattern"),
        _pattern(values.get("rank_pattern"), "rank_pattern"),
    )


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"The adapter's configuration says {name} = {value!r}, which is not a number. Export the adapter again.")
    return float(value)


def _pattern(value: object, name: str) -> dict[str, float]:
    if not value:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"The adapter's configuration says {name} = {value!r}, which is not a table. Export the adapter again.")
    return {str(key): _number(number, f"{name}[{key!r}]") for key, number in value.items()}


def _by_pattern(patterns: Mapping[str, float], name: str, usual: _Usual) -> float | _Usual:
    """PEFT's rule: the first pattern that is the end of the layer's name, as a regular expression."""
    for pattern, value in patterns.items():
        if name == pattern or name.endswith(f".{pattern}"):
            return value
        if re.fullmatch(r"[\w.]*", pattern):
            continue
        # Anybody may have written the file: no expression that can take for ever.
        if len(pattern) > _LONGEST or re.search(r"[()]", pattern) or len(re.findall(r"[*+?{]", pattern)) > 3:
            raise ValueError(
                f"The adapter's configuration holds the pattern {pattern[:60]!r}, which is too intricate to read. Export the adapter with plain layer names."
            )
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except re.error as error:
            raise ValueError(f"The adapter's configuration holds the pattern {pattern[:60]!r}, which is no regular expression ({error}).") from error
    return usual
