"""The nodes in the real server, as people queue them."""

import io
import time

import numpy as np
import pytest
from kindred_testing import guidance_models as g
from kindred_testing import host_version
from kindred_testing.server import PromptError
from PIL import Image
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def lora_name(server):
    base, _ = g.base_model()
    save_file(g.lora(base, rank=4), server.base / "models" / "loras" / "guidance.safetensors")
    return "guidance.safetensors"


def graph(server, lora_name, omega=0.3, node="KindredKSampler", **inputs):
    """Checkpoint -> LoRA -> the node -> preview, in API form."""
    prompt = {
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": server.CHECKPOINT}},
        "lora": {"class_type": "LoraLoaderModelOnly", "inputs": {"model": ["base", 0], "lora_name": lora_name, "strength_model": 0.9}},
        "positive": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["base", 1], "text": "a photo of a dog"}},
        "negative": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["base", 1], "text": ""}},
        "empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 128, "height": 128, "batch_size": 1}},
        "draw": {
            "class_type": node,
            "inputs": {
                "model": ["lora", 0],
                "base_model": ["base", 0],
                "omega": omega,
                "seed": 7,
                "steps": 3,
                "cfg": 7.5,
                "sampler_name": "euler",
                "scheduler": "normal",
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "latent_image": ["empty", 0],
                "denoise": 1.0,
                **inputs,
            },
        },
        "decode": {"class_type": "VAEDecode", "inputs": {"samples": ["draw", 0], "vae": ["base", 2]}},
        "look": {"class_type": "PreviewImage", "inputs": {"images": ["decode", 0]}},
    }
    if node == "KSampler":
        for name in ("base_model", "omega"):
            prompt["draw"]["inputs"].pop(name)
    return prompt


def image(server, prompt) -> np.ndarray:
    return pixels(server.wait(server.submit(prompt)))


def pixels(result) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(result.images["look"][0])))


def test_ksampler_node_draws_and_omega_one_is_core(server, lora_name):
    plain = image(server, graph(server, lora_name, node="KSampler"))
    assert np.array_equal(image(server, graph(server, lora_name, omega=1.0)), plain)
    assert not np.array_equal(image(server, graph(server, lora_name, omega=0.0)), plain)


def test_two_queued_workflows_give_what_each_gives_alone(server, lora_name):
    """Different omega on one loaded model, queued at once."""
    alone = {omega: image(server, graph(server, lora_name, omega=omega)) for omega in (0.0, 0.6)}
    queued = [(omega, server.submit(graph(server, lora_name, omega=omega, steps=3, seed=7, denoise=0.9999))) for omega in (0.0, 0.6, 0.0)]
    for omega, prompt_id in queued:
        assert np.array_equal(pixels(server.wait(prompt_id)), alone[omega])
    assert not np.array_equal(alone[0.0], alone[0.6])


def test_interrupt_in_mid_run(server, lora_name):
    """The host's interrupt while our layers are in place; the next prompt, and plain CFG on the same module, are as ever."""
    expected = image(server, graph(server, lora_name, omega=0.2)), image(server, graph(server, lora_name, node="KSampler", seed=8))
    running = server.submit(graph(server, lora_name, omega=0.2, steps=500, seed=9))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not any(entry[1] == running for entry in server.get("/queue")["queue_running"]):
        time.sleep(0.05)
    time.sleep(1.0)
    server.interrupt(running)
    with pytest.raises(RuntimeError, match="interrupted"):
        server.wait(running, timeout=60)
    assert np.array_equal(image(server, graph(server, lora_name, omega=0.2, denoise=0.9999)), expected[0])
    assert np.array_equal(image(server, graph(server, lora_name, node="KSampler", seed=8, denoise=0.9999)), expected[1])


def test_guider_and_patch_in_core_nodes(server, lora_name):
    """The guider in SamplerCustomAdvanced and the model patch in core's KSampler draw what our KSampler draws."""
    expected = image(server, graph(server, lora_name, omega=0.4))
    patched = graph(server, lora_name, node="KSampler")
    patched["patch"] = {
        "class_type": "KindredPersonalizationGuidance",
        "inputs": {
            "model": ["lora", 0],
            "base_model": ["base", 0],
            "omega": 0.4,
            "omega_end": 0.4,
            "omega_curve": "constant",
            "start_percent": 0.0,
            "end_percent": 1.0,
        },
    }
    patched["draw"]["inputs"]["model"] = ["patch", 0]
    assert np.array_equal(image(server, patched), expected)
    custom = graph(server, lora_name)
    custom |= {
        "noise": {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}},
        "sampler": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "sigmas": {"class_type": "BasicScheduler", "inputs": {"model": ["lora", 0], "scheduler": "normal", "steps": 3, "denoise": 1.0}},
        "guider": {
            "class_type": "KindredGuider",
            "inputs": {
                "model": ["lora", 0],
                "base_model": ["base", 0],
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "cfg": 7.5,
                "omega": 0.4,
                "mode": "personalization",
                "scale": 1.0,
                "omega_end": 0.4,
                "omega_curve": "constant",
                "start_percent": 0.0,
                "end_percent": 1.0,
                "curve": {"points": [[0, 0], [1, 1]], "interpolation": "linear"},
            },
        },
        "draw": {
            "class_type": "SamplerCustomAdvanced",
            "inputs": {"noise": ["noise", 0], "guider": ["guider", 0], "sampler": ["sampler", 0], "sigmas": ["sigmas", 0], "latent_image": ["empty", 0]},
        },
    }
    assert np.array_equal(image(server, custom), expected)
    custom["guider"]["inputs"] |= {"omega_curve": "curve", "omega": 0.0, "omega_end": 0.9}
    if host_version() < (0, 24):
        with pytest.raises(PromptError, match="This ComfyUI has no curves yet"):
            server.run(custom)
        return
    assert not np.array_equal(image(server, custom), expected)


def test_refusals_reach_the_artist(server, lora_name):
    """Out of range, NaN through a link, an unconnected negative, swapped models: each is one sentence on the node."""
    with pytest.raises(PromptError, match="omega"):
        server.submit(graph(server, lora_name, omega=1.5))
    linked = graph(server, lora_name)
    linked["number"] = {"class_type": "PrimitiveFloat", "inputs": {"value": 1.5}}
    linked["draw"]["inputs"]["omega"] = ["number", 0]
    with pytest.raises(PromptError, match=r"`omega` is 1\.5; expected a number from 0"):
        server.wait(server.submit(linked))
    swapped = graph(server, lora_name)
    swapped["draw"]["inputs"] |= {"model": ["base", 0], "base_model": ["lora", 0]}
    with pytest.raises(PromptError, match="probably swapped"):
        server.wait(server.submit(swapped))
    guider = graph(server, lora_name)
    guider["draw"] = {
        "class_type": "KindredGuider",
        "inputs": {"model": ["lora", 0], "base_model": ["base", 0], "positive": ["positive", 0], "cfg": 7.5, "omega": 0.4},
    }
    guider["noise"] = {"class_type": "RandomNoise", "inputs": {"noise_seed": 7}}
    guider["sampler"] = {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    guider["sigmas"] = {"class_type": "BasicScheduler", "inputs": {"model": ["lora", 0], "scheduler": "normal", "steps": 3, "denoise": 1.0}}
    guider["run"] = {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {"noise": ["noise", 0], "guider": ["draw", 0], "sampler": ["sampler", 0], "sigmas": ["sigmas", 0], "latent_image": ["empty", 0]},
    }
    guider["decode"]["inputs"]["samples"] = ["run", 0]
    with pytest.raises(PromptError, match="encodes nothing by itself"):
        server.wait(server.submit(guider))
