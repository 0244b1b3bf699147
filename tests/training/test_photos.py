"""Folders of photos as people have them: real files, broken in the ways that files break."""

import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
from kindred_testing import ROOT, pack
from PIL import Image


def read(path):
    return pack("training.data.photos").read_photo(path)


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
    photos = [torch.from_numpy(photo.pixels)[None] for photo in pack("training.data.photos").read_photos(tmp_path)]
    with pytest.raises(ValueError, match="image 2 is 1 x 1 pixels; at least 16 x 16"):
        pack("training.data.concept").make_concept(photos, "<v1>", "dog")


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
        pack("training.data.photos").read_photos(tmp_path)


def test_order_captions_and_empty_folders(tmp_path):
    photos = pack("training.data.photos")
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
        pack("training.data.concept").make_concept(**settings)


def test_captions_of_a_concept():
    make = pack("training.data.concept").make_concept
    result = make([torch.rand(4, 64, 64, 3)], "<v1>", "dog", captions="{token} asleep\n\non the sofa\nthe <v1> {class}\n")
    assert result.prompts == ("<v1> asleep", "a photo of a <v1> dog", "a photo of a <v1> dog, on the sofa", "the <v1> dog")
    assert (result.token_prompt, result.class_prompt) == ("a photo of a <v1> dog", "a photo of a dog")


def test_captions_come_as_lines_or_as_a_list():
    make = pack("training.data.concept").make_concept
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
    concepts = pack("training.data.concept")
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


def test_what_is_left_out_is_named_and_masks_are_masks(tmp_path):
    """Case 40."""
    photos = pack("training.data.photos")
    for name in ("a.jpg", "b.avif", "c.jfif", "D.PNG", "gas_mask.png"):
        Image.new("RGB", (40, 20), "red").save(tmp_path / name, "JPEG" if name == "c.jfif" else None)
    half = Image.new("L", (40, 20))
    half.paste(255, (20, 0, 40, 20))
    for name in ("a-masklabel.png", "b_mask.png", "c.mask.png", "lost-masklabel.png"):
        half.save(tmp_path / name)
    for name in ("IMG_1.HEIC", "e.mov", "Thumbs.db", ".hidden.jpg", "notes.md"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "a.caption").write_text("asleep")
    (tmp_path / "typo.txt").write_text("awake")
    said = []
    read = photos.read_photos(tmp_path, said.append)
    assert [photo.name for photo in read] == ["D.PNG", "a.jpg", "b.avif", "c.jfif", "gas_mask.png"]
    assert [photo.alpha is None for photo in read] == [True, False, False, False, True]
    assert read[1].alpha[0].tolist() == [0] * 20 + [1] * 20 and read[1].caption == "asleep"
    said = "\n".join(said)
    for words in ("IMG_1.HEIC", "HEIC is not read here: convert it", "not a photo): notes.md", "a video", "typo.txt", "gas_mask.png", "lost-masklabel.png"):
        assert words in said
    assert "Thumbs" not in said and "hidden" not in said
    before = photos.fingerprint(tmp_path)
    Image.new("L", (40, 20), 255).save(tmp_path / "a-masklabel.png")
    assert photos.fingerprint(tmp_path) != before
    Image.new("L", (41, 20), 255).save(tmp_path / "a-masklabel.png")
    with pytest.raises(ValueError, match=r"^'a-masklabel.png' is 41 x 20, its photo 'a.jpg' is 40 x 20"):
        photos.read_photos(tmp_path, lambda _: None)
    only = tmp_path / "only"
    only.mkdir()
    (only / "1.heic").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"no pictures that can be read.*convert it to JPEG.*1\.heic"):
        photos.read_photos(only)


@pytest.mark.parametrize("value, words", [(float("nan"), "not numbers"), (float("inf"), "not numbers"), (-0.5, "from -0.5 to 1"), (255.0, "from 1 to 255")])
def test_a_mask_holds_numbers_from_0_to_1(value, words):
    """Case 45. The loss is multiplied by it. Masks in a photo's fourth channel go the same way; pictures on another scale are its relatives."""
    make = pack("training.data.concept").make_concept
    mask = torch.ones(2, 32, 32)
    mask[1, 3, 3] = value
    with pytest.raises(ValueError, match=f"mask 2 .*{words}"):
        make([torch.rand(2, 32, 32, 3)], "<v1>", "dog", masks=[mask])
    for scaled in (torch.rand(1, 32, 32, 3) * 255, torch.rand(1, 32, 32, 3) * 2 - 1):
        with pytest.raises(ValueError, match=r"image 1 has values from .* expected pictures in 0..1"):
            make([scaled], "<v1>", "dog")


def damaged_exif(path):
    """An EXIF block in which nothing can be found."""
    Image.new("RGB", (64, 64)).save(path, "PNG", exif=b"XX*\0")


def hostile(path):
    """PostScript that never ends, under the name of a picture."""
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{} loop\n")


def bomb(path):
    """A PNG of 21 KB that unpacks to 13,370 x 13,370 pixels."""
    Image.new("1", (13370, 13370)).save(path)


@pytest.mark.parametrize("make", [damaged_exif, hostile, bomb, lambda path: os.mkfifo(path)], ids=["exif", "postscript", "bomb", "pipe"])
def test_every_problem_of_a_picture_begins_with_its_name(tmp_path, make):
    """Cases 56 and 61."""
    if make not in (damaged_exif, hostile, bomb) and not hasattr(os, "mkfifo"):
        pytest.skip("no pipes there")
    make(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"^'a\.png' cannot be read: .*(EXIF|formats PNG|13370 x 13370|ordinary file)"):
        read(tmp_path / "a.png")


def test_exif_that_is_damaged_elsewhere_still_says_how_to_turn(tmp_path):
    """Case 56: a width that is a text. Pillow's own function writes the block anew and fails with a struct.error."""
    entries = struct.pack("<HHHI4sHHI4s", 2, 0x100, 2, 2, b"x", 0x112, 3, 1, b"\6") + b"\0" * 4
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0" + entries)
    assert read(tmp_path / "a.jpg").pixels.shape == (40, 20, 3)


PEAK = "import sys; sys.path.append(sys.argv[1]); import kindred_standalone; from pathlib import Path; photo = kindred_standalone.load('training.data.photos').read_photo(Path(sys.argv[2])); print(photo.pixels.shape, Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from Linux's own count")
def test_a_photo_of_a_hundred_megapixels_is_read_in_bounded_memory(tmp_path):
    """Case 61. It arrives halved; its numbers alone would take 1.2 GB in full."""
    Image.linear_gradient("L").resize((11648, 8736)).convert("RGB").save(tmp_path / "large.jpg")
    said = subprocess.run(
        [sys.executable, "-c", PEAK, str(ROOT / "host" / "standalone"), str(tmp_path / "large.jpg")], capture_output=True, text=True, timeout=200
    )
    assert said.stdout.startswith("(4368, 5824, 3)"), said.stderr
    assert int(said.stdout.split()[-1]) < 1_000_000, said.stdout


def test_large_pictures_are_reduced_by_the_mean(monkeypatch, tmp_path):
    """In bands of rows, with sides that the factor does not divide, in 8 and 16 bits, with and without transparency."""
    files = pack("formats.picture_file")
    random = np.random.default_rng(0)
    deep, flat = random.integers(0, 65535, (301, 403), dtype=np.uint16), random.integers(0, 255, (301, 403, 4), dtype=np.uint8)
    flat[..., 3] |= 254
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(flat).save(tmp_path / "clear.png")
    Image.fromarray(flat[..., :3]).save(tmp_path / "plain.png")
    whole = {name: read(tmp_path / f"{name}.png").pixels for name in ("deep", "clear", "plain")}
    monkeypatch.setattr(files, "MAX_PIXELS", 301 * 403 / 3**2)
    monkeypatch.setattr(files, "BAND", 403 * 20)
    for name, pixels in whole.items():
        smaller = read(tmp_path / f"{name}.png").pixels
        assert smaller.shape == (101, 135, 3)
        assert np.allclose(smaller[:100, :134], pixels[:300, :402].reshape(100, 3, 134, 3, 3).mean((1, 3)), atol=0.012), name
        assert np.allclose(smaller[100, 134], pixels[300, 402], atol=0.012)
