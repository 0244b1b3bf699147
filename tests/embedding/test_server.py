"""The three nodes in the real server: images, links that carry what a widget would not, and the words an artist reads."""

import io
import os

import pytest
import torch
from kindred_testing import pack
from kindred_testing.server import PromptError
from PIL import Image

TEXT = "a photo of a (embedding:kindred-dog:1.2) dog on the beach, 犬"
CLASS_TEXT = "a photo of a dog on the beach, 犬"


@pytest.fixture(scope="module", autouse=True)
def embedding(server):
    """An embedding file in the server's folder."""
    generator = torch.Generator().manual_seed(3)
    token = pack("formats.token").LearnedToken("<v1>", "dog", {"clip_l": torch.randn(2, 768, generator=generator) * 0.05})
    return pack("formats.token_file").save(token, server.base / "models" / "embeddings" / "kindred-dog.safetensors").stem


def graph(server, **nodes) -> dict:
    """A checkpoint, its clip with the file's token carried as it is (`clip`), and `nodes`."""
    return {
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": server.CHECKPOINT}},
        "clip": node("KindredTokenSLERP", clip=["base", 1], token="embedding:kindred-dog", class_word="dog", alpha=0.0, beta=0.0, norm="midpoint"),
        **nodes,
    }


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def ours(text: str = TEXT, **inputs) -> dict:
    return node("KindredTextEncode", **{"clip": ["clip", 0], "text": text, "alpha": 0.2, "beta": 0.5, **inputs})


def pictures(server, positives: dict[str, dict], **more) -> dict[str, bytes]:
    """One run: the pixels that each positive conditioning gives from one seed."""
    nodes = {"negative": node("CLIPTextEncode", clip=["base", 1], text=""), "latent": node("EmptyLatentImage", width=64, height=64, batch_size=1)}
    for name, positive in positives.items():
        wires = {"model": ["base", 0], "positive": [name, 0], "negative": ["negative", 0], "latent_image": ["latent", 0]}
        nodes[name] = positive
        nodes[f"{name} latent"] = node("KSampler", **wires, seed=7, steps=2, cfg=1.0, sampler_name="euler", scheduler="normal", denoise=1.0)
        nodes[f"{name} decode"] = node("VAEDecode", samples=[f"{name} latent", 0], vae=["base", 2])
        nodes[f"{name} image"] = node("PreviewImage", images=[f"{name} decode", 0])
    images = server.run(graph(server, **nodes, **more)).images
    return {name: Image.open(io.BytesIO(images[f"{name} image"][0])).tobytes() for name in positives}


@pytest.mark.hosts
def test_alpha_0_with_the_norm_kept_is_cores_image(server):
    wires = {"conditioning": ["carried", 0], "class_conditioning": ["class", 0]}
    made = pictures(
        server,
        {
            "core": node("CLIPTextEncode", clip=["base", 1], text=TEXT),
            "carried": node("CLIPTextEncode", clip=["clip", 0], text=TEXT),
            "by token": ours(alpha=0.0, beta=0.0, align="token"),
            "by position": ours(alpha=0.0, beta=0.0, align="position"),
            "slerp": node("KindredConditioningSLERP", **wires, alpha=0.0, beta=0.0, norm="midpoint", align="position"),
            "adjusted": ours(),
            "adjusted first": ours(start_percent=0.0, end_percent=0.5),
        },
        **{"class": node("CLIPTextEncode", clip=["base", 1], text=CLASS_TEXT)},
    )
    for name in ("carried", "by token", "by position", "slerp"):
        assert made[name] == made["core"], name
    assert len({made["core"], made["adjusted"], made["adjusted first"]}) == 3


def test_the_chosen_alpha_is_shown(server):
    encoded = graph(server, encode=ours(auto_alpha=True, keep=0.9, class_clip=["base", 1]), sink=node("PreviewAny", source=["encode", 0]))
    (line,) = server.run(encoded).ui["encode"]["text"]
    assert f"class prompt: {CLASS_TEXT}" in line and "(auto): keeps 90% of the scene" in line


@pytest.mark.parametrize(
    "inputs, words",
    [
        ({"text": "a photo of a dog"}, ["'a photo of a dog'", "'embedding:kindred-dog'"]),
        ({"alpha": ["number", 0]}, ["alpha is 1.5", "from 0 to 1"]),
        ({"beta": ["number", 0]}, ["beta is 1.5", "from 0 to 1"]),
    ],
)
def test_errors_say_what_to_do(server, inputs, words):
    with pytest.raises(PromptError) as error:
        server.run(graph(server, number=node("PrimitiveFloat", value=1.5), encode=ours(**inputs), sink=node("PreviewAny", source=["encode", 0])))
    assert all(word in str(error.value) for word in words), error.value


def test_a_name_that_leaves_the_folder(server):
    prompt = graph(server, encode=ours("a <v1> dog"), sink=node("PreviewAny", source=["encode", 0]))
    prompt["clip"]["inputs"]["token"] = f"embedding:..{os.sep}secret"
    with pytest.raises(PromptError, match="not the name of an embedding"):
        server.run(prompt)
