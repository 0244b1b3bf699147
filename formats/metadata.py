"""Training metadata of saved files, under the keys of kohya's tools (`ss_*`), ModelSpec (`modelspec.*`) and Kindred (`kindred.*`).

It holds no path of the machine, and no time unless the caller passes one. Text from an artist is kept as written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

_PREDICTIONS = {"eps": "epsilon", "v": "v", "flow": "flow"}  # ours -> ModelSpec's


def training_metadata(
    *,
    architecture: str,
    base_version: str,
    prediction: str,
    method: str,
    steps: int,
    seed: int,
    resolution: int | tuple[int, int],
    title: str = "",
    description: str = "",
    triggers: Sequence[str] = (),
    prompts: Sequence[Mapping[str, str]] = (),
    tag_frequency: Mapping[str, Mapping[str, int]] | None = None,
    spl_weight: float = 0.0,
    algorithm: str = "",
    reader: str = "networks.lora",
    algo: str = "",
    rank: int | None = None,
    alpha: float | None = None,
    learning_rate: float | None = None,
    unet_learning_rate: float | None = None,
    text_encoder_learning_rate: float | None = None,
    batch_size: int | None = None,
    images: int | None = None,
    optimizer: str = "",
    schedule: str = "",
    precision: str = "",
    base_hash: str = "",
    date: str = "",
    settings: Mapping[str, object] | None = None,
) -> dict[str, str]:
    """The metadata of a LoRA file, a pure function of the arguments. Every value is text, as safetensors requires.

    architecture        ModelSpec's name of the base model's architecture (`stable-diffusion-v1`)
    base_version        kohya's name of it (`sd_v1`)
    prediction          type of the network's prediction: eps, v or flow
    method              as chosen in Train Concept (`kv + token`)
    algorithm           of the adapter: LoRA, DoRA, ...; "" for full differences
    reader, algo        the module that kohya's tools load the file with, and that module's name of the algorithm ("" if it has only one)
    prompts             one mapping for each concept: token, class_word, instance_prompt, class_prompt
    tag_frequency       concept -> caption -> number of uses, as kohya's ss_tag_frequency
    base_hash           hash of the base model's weights (`host.fingerprint.model_hash`)
    date                ISO 8601, optional: with it, the same run no longer gives the same bytes
    settings            all other settings of the run, each under `kindred.<name>`
    """
    size = (resolution, resolution) if isinstance(resolution, int) else tuple(resolution)
    values: dict[str, object] = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "https://github.com/comfyanonymous/ComfyUI",
        "modelspec.title": title,
        "modelspec.description": description,
        "modelspec.date": date,
        "modelspec.prediction_type": _PREDICTIONS[prediction],
        "modelspec.resolution": f"{size[0]}x{size[1]}",
        "modelspec.trigger_phrase": ", ".join(triggers),
        "ss_base_model_version": base_version,
        "ss_v2": str(base_version.startswith("sd_v2")),
        "ss_network_module": reader,
        "ss_network_dim": rank,
        "ss_network_alpha": alpha,
        "ss_network_args": json.dumps({"algo": algo}) if algo else None,
        "ss_learning_rate": learning_rate,
        "ss_unet_lr": unet_learning_rate,
        "ss_text_encoder_lr": text_encoder_learning_rate,
        "ss_steps": steps,
        "ss_max_train_steps": steps,
        "ss_seed": seed,
        "ss_resolution": f"({size[0]}, {size[1]})",
        "ss_batch_size_per_device": batch_size,
        "ss_num_train_images": images,
        "ss_optimizer": optimizer,
        "ss_lr_scheduler": schedule,
        "ss_mixed_precision": precision,
        "ss_tag_frequency": _json(tag_frequency) if tag_frequency else None,
        "kindred.method": method,
        "kindred.algorithm": algorithm,
        "kindred.spl_weight": spl_weight,
        "kindred.prompts": _json([dict(entry) for entry in prompts]) if prompts else None,
        "kindred.steps": steps,
        "kindred.seed": seed,
        "kindred.base_model_hash": base_hash,
        **{f"kindred.{key}": value for key, value in (settings or {}).items()},
    }
    return clean({key: str(value) for key, value in values.items() if value not in (None, "")})


def clean(metadata: Mapping[str, object]) -> dict[str, str]:
    """`metadata` as a safetensors header can hold it: text keys and values, without lone surrogates, which UTF-8 cannot encode."""
    return {_utf8(str(key)): _utf8(str(value)) for key, value in metadata.items()}


def count_captions(concepts: Iterable[tuple[str, Sequence[str]]]) -> dict[str, dict[str, int]]:
    """(name, captions) of each concept -> name -> caption -> number of uses. Counts of concepts with the same name are summed."""
    counts: dict[str, Counter[str]] = {}
    for name, captions in concepts:
        counts.setdefault(name, Counter()).update(captions)
    return {name: dict(counter) for name, counter in counts.items()}


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
