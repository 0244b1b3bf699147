"""PEFT's configuration of an adapter: the scale of its tensors, and options that cannot be applied.

It is in `adapter_config.json` beside PEFT's own file, or in the metadata of diffusers' file (`lora_adapter_metadata`), where each key
is prefixed with the part of the pipeline (`unet.r`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from .. import text_file

Usual = TypeVar("Usual")
KEY = "lora_adapter_metadata"
_DEFAULTS = {"LORA": ("lora_alpha", 8.0), "LOHA": ("alpha", 8.0), "LOKR": ("alpha", 8.0)}  # PEFT's, if the configuration has no alpha
_STARTS = ("", "none", "true", "false", "gaussian", "eva", "orthogonal", "mica")  # other initializations may have changed the base model's weights
_UNSUPPORTED = ("layer_replication", "use_qalora", "alora_invocation_tokens", "arrow_config", "use_bdlora", "monteclora_config", "kasa_config")
_MAX_PATTERN = 200  # characters


@dataclass(frozen=True)
class PeftSettings:
    """One component's configuration.

    type           LORA, LOHA or LOKR
    alpha, rank    of all layers without a pattern; rank None = that of the tensors
    rank_stable    divide by sqrt(rank) instead of rank (rsLoRA)
    """

    type: str = "LORA"
    alpha: float = 8.0
    rank: float | None = None
    rank_stable: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)
    ranks: Mapping[str, float] = field(default_factory=dict)

    def scale(self, name: str, rank: float | None = None) -> float:
        """The factor of up @ down in the layer `name` (as in the file, without the component). `rank` is that of its tensors, if known."""
        rank = rank or _by_pattern(self.ranks, name, self.rank)
        if not rank or not rank > 0:
            raise ValueError(f"PEFT's configuration gives no rank for the layer {name!r}. Export the adapter again.")
        return _by_pattern(self.alphas, name, self.alpha) / (math.sqrt(rank) if self.rank_stable else rank)


def read(metadata: Mapping[str, str]) -> dict[str, PeftSettings]:
    """Component -> its settings, "" for a configuration without components. ValueError if it is unreadable or needs unsupported options."""
    try:
        configuration = text_file.parse_json(metadata.get(KEY, "{}"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The adapter's configuration cannot be read ({type(error).__name__}). Export the adapter again.") from error
    if not isinstance(configuration, dict):
        raise ValueError("The adapter's configuration is not a table of settings. Export the adapter again.")
    components: dict[str, dict[str, object]] = {}
    for key, value in configuration.items():
        component, dot, setting = key.rpartition(".")
        components.setdefault(component if dot else "", {})[setting] = value
    return {component: _settings(component, values) for component, values in components.items()}


def _settings(component: str, values: Mapping[str, object]) -> PeftSettings:
    owner = f"of {component!r} " if component else ""
    adapter = str(values.get("peft_type") or "LORA").rpartition(".")[2].upper()
    if adapter not in _DEFAULTS:
        raise ValueError(
            f"The adapter {owner}is of PEFT's type {adapter}, which ComfyUI cannot apply. LoRA (with DoRA and rsLoRA), LoHa and LoKr can be loaded."
        )
    start = str(values.get("init_lora_weights", "")).lower()
    if start not in _STARTS:
        raise ValueError(
            f"The adapter {owner}was initialized with {start!r}, which may have changed the base model's own weights. "
            "Convert it to a plain LoRA first: PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)."
        )
    unsupported = [name for name in _UNSUPPORTED if values.get(name)]
    if unsupported:
        raise ValueError(f"The adapter {owner}uses PEFT's option {unsupported[0]!r}, which ComfyUI cannot apply. Train it without that option.")
    key, usual = _DEFAULTS[adapter]
    alpha = values.get(key)
    return PeftSettings(
        adapter,
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


def _by_pattern(patterns: Mapping[str, float], name: str, usual: Usual) -> float | Usual:
    """The value of the first pattern that matches the end of the layer's name as a regular expression, which is PEFT's rule; else `usual`."""
    for pattern, value in patterns.items():
        if name == pattern or name.endswith(f".{pattern}"):
            return value
        if re.fullmatch(r"[\w.]*", pattern):
            continue
        # The file may come from anyone, so expressions that could take forever are refused.
        if len(pattern) > _MAX_PATTERN or re.search(r"[()]", pattern) or len(re.findall(r"[*+?{]", pattern)) > 3:
            raise ValueError(
                f"The adapter's configuration holds the pattern {pattern[:60]!r}, which is too complex to evaluate safely. "
                "Export the adapter with plain layer names."
            )
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except re.error as error:
            raise ValueError(
                f"The adapter's configuration holds the pattern {pattern[:60]!r}, which is not a regular expression ({error}). "
                "Export it with plain layer names."
            ) from error
    return usual
