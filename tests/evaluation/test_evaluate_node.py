"""Evaluate Pictures: from pictures of any size to a table and a plot, and the node in the server with a user's CLIP."""

import io
import json
import sys
from pathlib import Path

import pytest
import torch
from kindred_testing import pack
from kindred_testing.server import PromptError
from PIL import Image

DEMO = Path(__file__).resolve().parents[2] / "dev" / "demo"
if str(DEMO) not in sys.path:
    sys.path.append(str(DEMO))

from world import subjects  # noqa: E402

PROMPTS = ["a photo of a <v1> dog wearing a hat on the moon", "a photo of a <v1> dog on the beach"]


class Width:
    """A measure that can be computed by hand: how red a picture is, and whether its prompt was read without the token."""

    name = "redness"

    def __call__(self, images, references, prompts):
        assert not any("<v1>" in prompt for prompt in prompts)
        return images[:, 0].mean((1, 2))


def test_sizes_prompts_and_groups():
    scores = pack("evaluation.scores")
    images = [torch.full((2, 32, 48, 3), 0.25), torch.full((1, 64, 64, 4), 0.75)]
    report = scores.score(images, [torch.zeros(1, 16, 16, 3)], "\n".join([PROMPTS[0], PROMPTS[0], PROMPTS[1]]), [Width()], "<v1>", "dog")
    assert report.scores["redness"] == pytest.approx([0.25, 0.25, 0.75], abs=1e-4)
    assert report.groups == [PROMPTS[0], PROMPTS[0], PROMPTS[1]]
    assert "0.250" in report.text() and "0.750" in report.text() and report.text().count("dog") == 2
    assert scores.together(images, "images").shape == (3, 3, 32, 32)
    assert not scores.score(images, images, PROMPTS[0], [Width()], "<v1>", "dog").groups  # one prompt: its pictures are all there is to draw from
    picture = pack("evaluation.scores_plot").plot(report, scores.together(images, "images"))
    assert picture.shape[0] == 1 and picture.shape[2:] == (1000, 3) and 0 <= picture.min() < picture.max() <= 1
    with pytest.raises(ValueError, match="found 2 for 3 images"):
        scores.score(images, images, "\n".join(PROMPTS), [Width()], "<v1>", "dog")
    with pytest.raises(ValueError, match="prompts is empty"):
        scores.score(images, images, " \n", [Width()])


def toy_clip(folder: Path) -> None:
    """A real CLIP of toy size with random weights, as a user's folder holds one."""
    import transformers as t

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", *(c + "</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    t.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="<|endoftext|>").save_pretrained(folder)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1}
    t.CLIPModel(t.CLIPConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=16)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    t.CLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder)


def test_the_node_in_the_server(server):
    subject = subjects.SUBJECTS["biscuit"]
    photos, drawn = server.base / "input" / "evaluate-photos", server.base / "input" / "evaluate-drawn"
    for folder, pictures in (
        (photos, subjects.photos("biscuit", 64)),
        (
            drawn,
            [
                subject.scene("hat", "moon", 1).draw(128),
                subject.scene("none", "beach", 2).draw(128),
                subjects.SUBJECTS["pepper"].scene("none", "beach", 3).draw(96),
            ],
        ),
    ):
        folder.mkdir(parents=True)
        for index, picture in enumerate(pictures):
            picture.save(folder / f"{index}.png")
    toy_clip(server.base / "models" / "evaluation" / "toy-clip")
    inputs = {"images": ["drawn", 0], "references": ["photos", 0], "prompts": "\n".join([*PROMPTS, PROMPTS[1]]), "token": "<v1>", "class_word": "dog"}

    def run(**more):
        return server.run({
            "photos": {"class_type": "KindredPhotos", "inputs": {"folder": photos.name}},
            "drawn": {"class_type": "KindredPhotos", "inputs": {"folder": drawn.name}},
            "score": {"class_type": "KindredEvaluate", "inputs": {**inputs, **more}},
            "image": {"class_type": "PreviewImage", "inputs": {"images": ["score", 1]}},
        })  # fmt: skip

    result = run(clip="toy-clip")
    (text,) = result.ui["score"]["text"]
    for measure in ("CLIP-T", "CLIP-I"):
        assert measure in text
    rows = {line.split("   ")[-1]: line.split() for line in text.splitlines() if "a photo of" in line}
    assert rows[PROMPTS[0]][2] == "1" and rows[PROMPTS[1]][2] == "2"  # pictures of each prompt
    (picture,) = [Image.open(io.BytesIO(data)) for data in result.images["image"]]
    assert picture.width == 1000
    with pytest.raises(PromptError, match="No scoring model is chosen"):
        run()
