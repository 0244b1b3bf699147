"""Folders of photos as people have them: real files, broken in the ways that files break."""

import struct
import zlib

import numpy as np
import pytest
import torch
from kindred_testing import pack
from PIL import Image


def read(path):
    return pack("training.photos").read_photo(path)


def test_camera_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 20), "blue")
    image.paste((255, 0, 0), (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    photo = read(tmp_path / "turned.png")
    assert photo.pixels.shape == (40, 20, 3)
    assert photo.pixels[0, 0].tolist() == [1, 0, 0] and photo.pixels[-1, 0].tolist() == [0, 0, 1]


def test_transparency_becomes_the_mask(tmp_path):
    image = Image.new("RGBA", (32, 32), (255, 0, 0, 255))
    image.paste((0, 255, 0, 0), (16, 0, 32, 32))
    image.save(tmp_path / "cut.png")
    photo = read(tmp_path / "cut.png")
    assert photo.alpha[:, :16].min() == 1 and photo.alpha[:, 16:].max() == 0
    assert np.allclose(photo.pixels[:, 16:], 128 / 255)
    image.convert("RGB").save(tmp_path / "whole.png")
    assert read(tmp_path / "whole.png").alpha is None


@pytest.mark.parametrize(
    "mode, value, expected",
    [
        ("L", 128, 128 / 255),
        ("1", 1, 1.0),
        ("P", None, None),
        ("CMYK", (0, 0, 0, 0), 1.0),
        ("I;16", 40000, 40000 / 65535),
        ("I;16B", 40000, 40000 / 65535),
        ("LA", (128, 255), 128 / 255),
    ],
)
def test_every_colour_mode_becomes_rgb(tmp_path, mode, value, expected):
    image = Image.new("RGB", (20, 20), (10, 200, 30)).quantize() if mode == "P" else Image.new(mode, (20, 20), value)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "I;16B") else "x.png")
    image.save(path)
    pixels = read(path).pixels
    assert pixels.shape == (20, 20, 3) and pixels.dtype == np.float32
    if mode == "P":
        assert np.allclose(pixels[0, 0], [10 / 255, 200 / 255, 30 / 255], atol=0.03)
    else:
        assert np.allclose(pixels, expected, atol=0.01)


def test_a_palette_with_transparency_and_a_photo_of_one_pixel(tmp_path):
    image = Image.new("RGB", (20, 20), (10, 200, 30))
    image.paste((200, 0, 0), (10, 0, 20, 20))
    image = image.quantize()
    image.info["transparency"] = image.getpixel((15, 5))
    image.save(tmp_path / "palette.png", transparency=image.getpixel((15, 5)))
    assert read(tmp_path / "palette.png").alpha[5].tolist() == [1] * 10 + [0] * 10
    Image.new("RGB", (1, 1)).save(tmp_path / "pixel.png")
    photos = [torch.from_numpy(photo.pixels)[None] for photo in pack("training.photos").read_photos(tmp_path)]
    with pytest.raises(ValueError, match="image 2 is 1 x 1 pixels; at least 16 x 16"):
        pack("training.concept").make_concept(photos, "<v1>", "dog")


def enormous(path):
    """A PNG whose header claims 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))  # noqa: E731
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b""))


def truncated(path):
    Image.effect_noise((200, 200), 60).convert("RGB").save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize("damage", [enormous, truncated, lambda path: path.write_bytes(b"no picture"), lambda path: path.write_bytes(b"")])
def test_a_broken_photo_is_named_before_anything_is_trained(tmp_path, damage):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    damage(tmp_path / "broken.png")
    with pytest.raises(ValueError, match=r"'broken\.png' cannot be read"):
        pack("training.photos").read_photos(tmp_path)


def test_order_captions_and_empty_folders(tmp_path):
    photos = pack("training.photos")
    for name in ("b.png", "a.jpg", "c.webp"):
        Image.new("RGB", (64, 64)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("\ufeffa <v1> dog\nasleep", "utf-8")
    (tmp_path / "notes.md").write_text("not a photo")
    assert [(photo.name, photo.caption) for photo in photos.read_photos(tmp_path)] == [("a.jpg", "a <v1> dog asleep"), ("b.png", ""), ("c.webp", "")]
    before = photos.fingerprint(tmp_path)
    (tmp_path / "b.txt").write_bytes("für".encode("latin-1"))
    with pytest.raises(ValueError, match=r"'b\.txt' is not written in UTF-8"):
        photos.read_photos(tmp_path)
    assert photos.fingerprint(tmp_path) != before
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty' has no pictures.*\.png"):
        photos.read_photos(tmp_path / "empty")


@pytest.mark.parametrize(
    "given, words",
    [
        ({"images": [torch.rand(1, 8, 64, 3)]}, "64 x 8 pixels"),
        ({"images": []}, "images is empty"),
        ({"images": [torch.full((1, 64, 64, 3), float("nan"))]}, "no numbers"),
        ({"captions": "one\ntwo"}, "2 given for 3 images"),
        ({"masks": [torch.ones(2, 64, 64)]}, "2 given for 3 images"),
        ({"masks": [torch.ones(3, 32, 64)]}, "64 x 32, its image is 64 x 64"),
        ({"masks": [torch.zeros(3, 64, 64)]}, "mask 1 is empty"),
        ({"class_word": " "}, "class_word is empty"),
        ({"token": ""}, "token"),
        ({"token": "a b"}, "token 'a b'"),
        ({"instance_prompt": "a photo of a dog"}, "does not name the token"),
        ({"instance_prompt": "a photo of a dog"}, "'a photo of a dog', which does not name the token. Write {token} where '<v1>' belongs"),
        ({"class_prompt": "a photo of a {token}"}, "names the token '<v1>'"),
        ({"repeats": 0}, "repeats is 0"),
    ],
)
def test_a_concept_that_cannot_be_is_named(given, words):
    settings = {"images": [torch.rand(3, 64, 64, 3)], "token": "<v1>", "class_word": "dog", **given}
    with pytest.raises(ValueError, match=words):
        pack("training.concept").make_concept(**settings)


def test_captions_of_a_concept():
    make = pack("training.concept").make_concept
    result = make([torch.rand(4, 64, 64, 3)], "<v1>", "dog", captions="{token} asleep\n\non the sofa\nthe <v1> {class}\n")
    assert result.prompts == ("<v1> asleep", "a photo of a <v1> dog", "a photo of a <v1> dog, on the sofa", "the <v1> dog")
    assert (result.token_prompt, result.class_prompt) == ("a photo of a <v1> dog", "a photo of a dog")


def test_captions_come_as_lines_or_as_a_list():
    make = pack("training.concept").make_concept
    photos = [torch.rand(2, 64, 64, 3)]
    expected = ("a photo of a <v1> dog, on the sofa", "a photo of a <v1> dog")
    for captions in ("on the sofa\n", ["on the sofa\n"], ["on the\nsofa ", ""], [["on the sofa"], [""]]):
        assert make(photos, "<v1>", "dog", captions=captions).prompts == expected
    assert make([photos[0][:1]], "<v1>", "dog", captions="on\nthe sofa").prompts == expected[:1]
    for captions in ("", "\n\n", [], [""], ["", ""]):
        assert make(photos, "<v1>", "dog", captions=captions).prompts == ("a photo of a <v1> dog",) * 2
    with pytest.raises(ValueError, match="captions: 3 given for 2 images"):
        make(photos, "<v1>", "dog", captions=["a", "b", "c"])


def test_white_masks_are_none_and_a_change_shows_in_the_fingerprint():
    concepts = pack("training.concept")
    photos, half = torch.rand(2, 32, 32, 3), torch.ones(2, 32, 32)
    half[1, :16] = 0
    plain = concepts.make_concept([photos], "<v1>", "dog", masks=[torch.ones(2, 32, 32)])
    assert plain.masks is None
    others = [
        concepts.make_concept([photos], "<v1>", "dog", masks=[half]),
        concepts.make_concept([photos], "<v1>", "dog", captions="\nb"),
        concepts.make_concept([photos.flip(0)], "<v1>", "dog"),
        concepts.make_concept([photos], "<v1>", "dog", prior_images=[photos]),
        concepts.make_concept([photos], "<v1>", "dog", repeats=2),
        concepts.make_concept([photos], "<v1>", "dog", initializer="dog"),
    ]
    assert len({concepts.fingerprint(concept) for concept in [plain, *others]}) == 7
    assert concepts.fingerprint(plain) == concepts.fingerprint(concepts.make_concept([photos.clone()], "<v1>", "dog"))
