"""What a file says of its making: standard keys, our own, the artist's own words, the same each time."""

import json
from pathlib import Path

import pytest
import torch
from kindred_testing import pack

PROMPTS = [{"token": "<v1>", "class_word": "dog", "instance_prompt": "a photo of a <v1> dog", "class_prompt": "a photo of a dog"}]


def made(**changes):
    values = {
        "architecture": "stable-diffusion-v1",
        "base_version": "sd_v1",
        "prediction": "eps",
        "method": "lora + token",
        "steps": 500,
        "seed": 7,
        "resolution": 512,
        "title": "my dog",
        "triggers": ["<v1>"],
        "prompts": PROMPTS,
        "tag_frequency": {"dog": {"a photo of a <v1> dog": 5}},
        "spl_weight": 1.0,
        "algorithm": "LoRA",
        "rank": 16,
        "alpha": 8.0,
        "learning_rate": 2e-5,
        "base_hash": "ab" * 32,
        "settings": {"flip": True},
    }
    return pack("formats.metadata").training_metadata(**{**values, **changes})


def test_the_keys_that_other_tools_look_for():
    metadata = made()
    assert metadata == made() and all(isinstance(value, str) for value in metadata.values())
    assert {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": "my dog",
        "modelspec.prediction_type": "epsilon",
        "modelspec.resolution": "512x512",
        "modelspec.trigger_phrase": "<v1>",
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "16",
        "ss_network_alpha": "8.0",
        "ss_learning_rate": "2e-05",
        "ss_steps": "500",
        "ss_seed": "7",
        "kindred.method": "lora + token",
        "kindred.spl_weight": "1.0",
        "kindred.base_model_hash": "ab" * 32,
        "kindred.flip": "True",
    }.items() <= metadata.items()
    assert json.loads(metadata["ss_tag_frequency"]) == {"dog": {"a photo of a <v1> dog": 5}}
    assert json.loads(metadata["kindred.prompts"]) == PROMPTS
    assert "modelspec.date" not in metadata and made(date="2026-11-25")["modelspec.date"] == "2026-11-25"
    assert made(base_version="sd_v2_v")["ss_v2"] == "True" and metadata["ss_v2"] == "False"
    assert json.loads(made(reader="lycoris.kohya", algo="lokr")["ss_network_args"]) == {"algo": "lokr"} and "ss_network_args" not in metadata
    with pytest.raises(KeyError):
        made(prediction="guessed")


@pytest.mark.parametrize(
    "text", ["/r/aww", "a dog in the style of /r/aww, 1/2", "C:/drive, ~/art, \\\\o/", "file:///etc", '["/home/anna", "w/ a hat"]', "<v1>/dog 犬 🐶"]
)
def test_what_an_artist_wrote_is_kept_as_written(tmp_path, text):
    """Case 44: through Save Concept's writer, from every side, and back."""
    concept_file, token = pack("formats.concept_file"), pack("formats.token").LearnedToken
    metadata = made(description=text, prompts=[{"token": "<v1>", "instance_prompt": text}], tag_frequency={text: {text: 2}})
    lora = concept_file.LearnedLora({"diffusion_model.x.diff": torch.ones(2, 2)}, metadata)
    learned = token("<v1>", "dog", {"clip_l": torch.ones(1, 8)}, {"prompt": text})
    saved = concept_file.save(lora, [learned], "dog", tmp_path, tmp_path / "e", metadata={"kindred.extra": text})
    _, about = pack("formats.safefile").read(saved.lora)
    assert about["modelspec.description"] == about["kindred.extra"] == text
    assert json.loads(about["kindred.prompts"])[0]["instance_prompt"] == text
    assert json.loads(about["ss_tag_frequency"]) == {text: {text: 2}}
    assert pack("formats.token_file").load(saved.embeddings[0], {"clip_l": 8}).metadata["prompt"] == text


def test_half_a_character_does_not_stop_a_save(tmp_path):
    """A lone surrogate, which JSON from a browser can carry, has no place in UTF-8."""
    metadata = made(description="dog \ud83d")
    saved = pack("formats.concept_file").save({"a.diff": torch.ones(2, 2)}, [], "dog", tmp_path, tmp_path, metadata=metadata)
    assert pack("formats.safefile").read(saved.lora)[1]["modelspec.description"] == "dog ?"


def test_two_concepts_of_one_class_word_are_both_counted():
    """Case 45: kohya's ss_tag_frequency of a real run's description."""
    from kindred_testing import guidance_families

    concept, settings = pack("training.data.concept").make_concept, pack("training.settings").TrainSettings()
    photos = [torch.rand(3, 64, 64, 3)]
    concepts = [concept(photos, "<v1>", "dog"), concept(photos, "<v2>", "dog"), concept(photos, "<v3>", "cat"), concept(photos, "<v1>", "dog")]
    about = pack("training.description").describe(guidance_families.random_model("SD15"), "eps", concepts, settings, "float32", "")
    assert json.loads(about["ss_tag_frequency"]) == {
        "dog": {"a photo of a <v1> dog": 6, "a photo of a <v2> dog": 3},
        "cat": {"a photo of a <v3> cat": 3},
    }
    assert not any(str(Path.home()) in value for value in about.values())  # nothing there knows a folder of the machine


def test_a_models_hash_is_that_of_its_file(caplog):
    """The same for a clone, whatever is patched and loaded; another for one changed value."""
    import comfy.model_management
    from kindred_testing import guidance_families
    from kindred_testing.loras import apply, random_kv

    model_hash = pack("host.fingerprint").model_hash
    model = guidance_families.random_model("SD15", seed=3)
    before = model_hash(model)
    assert len(before) == 64 and before == model_hash(model.clone()) == model_hash(guidance_families.random_model("SD15", seed=3))
    tuned, _ = apply(model, None, random_kv(model))
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([tuned])
        assert model_hash(tuned) == model_hash(model) == before
        comfy.model_management.unload_all_models()
        next(model.model.diffusion_model.parameters()).view(-1)[5] += 1e-3
    assert model_hash(model) != before


def test_a_base_models_hash_does_not_depend_on_how_its_memory_is_laid_out():
    """Loaded in inference mode, as by a loader node, and given another layout afterwards, its parameters are no plain tensors any more."""
    from kindred_testing import guidance_families

    model_hash = pack("host.fingerprint").model_hash
    with torch.inference_mode():
        moved = guidance_families.random_model("SD15", seed=3)
    before = model_hash(guidance_families.random_model("SD15", seed=3))
    moved.model.diffusion_model.to(memory_format=torch.channels_last)
    assert model_hash(moved) == before
