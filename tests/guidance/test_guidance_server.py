"""The nodes in the real server, as people queue them."""

import io

import numpy as np
import pytest
from kindred_testing import guidance_models as g
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
        "draw": {"class_type": node, "inputs": {
            "model": ["lora", 0], "base_model": ["base", 0], "omega": omega, "seed": 7, "steps": 3, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal",
            "positive": ["positive", 0], "negative": ["negative", 0], "latent_image": ["empty", 0], "denoise": 1.0, **inputs}},
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
