"""Pictures and what lies beside them, for dev/bench/fuzz.py."""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any

import kindred_standalone
from fuzz_damage import Kind, damage, damage_text


def picture(mode: str = "RGB", side: int = 40):
    from PIL import Image

    return Image.frombytes("RGBA", (side, side), random.Random(side).randbytes(side * side * 4)).convert(mode)


def written(form: str, mode: str = "RGB", **how) -> bytes:
    out = io.BytesIO()
    picture(mode).save(out, form, **how)
    return out.getvalue()


class Picture(Kind):
    form = ""
    variants: tuple[dict[str, Any], ...] = ()

    def good(self) -> list[bytes]:
        return [written(self.form, **how) for how in self.variants]

    def load(self):
        return kindred_standalone.load("training.data.photos").read_photo(self.path)


class Png(Picture):
    name = "damaged.png"
    form = "PNG"
    variants = (
        {},
        {"mode": "RGBA"},
        {"mode": "P", "transparency": 3},
        {"mode": "I;16"},
        {"mode": "1"},
        {"exif": b"II*\0\x08\0\0\0\0\0"},
        {"save_all": True, "append_images": []},
    )

    def good(self):
        return [written("PNG", **{**how, "mode": "RGB"}) if how.get("mode") == "I;16" else written("PNG", **how) for how in self.variants]

    def mutate(self, chance):
        """Half of the time inside of a chunk, with its checksum mended, so that what follows is reached."""
        data = chance.choice(self.seeds)
        if chance.random() < 0.5:
            return damage(data, chance)
        chunks, place = [], 8
        while place < len(data):
            (length,) = struct.unpack(">I", data[place : place + 4])
            chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
            place += 12 + length
        index = chance.randrange(len(chunks))
        kind, content = chunks[index]
        unpacked = kind == b"IDAT" and chance.random() < 0.5
        content = zlib.compress(damage(zlib.decompress(content), chance)) if unpacked else damage(content, chance)
        chunks[index] = (
            kind if chance.random() < 0.9 else chance.choice((b"iCCP", b"zTXt", b"iTXt", b"tRNS", b"PLTE", b"acTL", b"fcTL", b"eXIf", b"pHYs")),
            content,
        )
        return data[:8] + b"".join(struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks)


class Jpeg(Picture):
    name = "damaged.jpg"
    form = "JPEG"
    variants = ({}, {"progressive": True}, {"mode": "L"}, {"mode": "CMYK"}, {"subsampling": 2, "quality": 30}, {"comment": b"x" * 30, "dpi": (72, 72)})


class Webp(Picture):
    name = "damaged.webp"
    form = "WEBP"
    variants = ({}, {"lossless": True}, {"mode": "RGBA"}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"})


class Avif(Picture):
    name = "damaged.avif"
    form = "AVIF"
    variants = ({"speed": 10}, {"speed": 10, "mode": "RGBA"}, {"speed": 10, "exif": b"II*\0\x08\0\0\0\0\0"})


class Tiff(Picture):
    name = "damaged.tif"
    form = "TIFF"
    variants = (
        {},
        {"compression": "tiff_lzw"},
        {"compression": "tiff_deflate"},
        {"compression": "jpeg"},
        {"mode": "CMYK"},
        {"mode": "I;16"},
        {"mode": "F"},
        {"mode": "1", "compression": "group4"},
    )

    def good(self):
        from PIL import Image

        def one(how):
            out = io.BytesIO()
            mode = how.get("mode", "RGB")
            image = (
                Image.frombytes("I;16", (40, 40), random.Random(1).randbytes(3200))
                if mode == "I;16"
                else picture("L").convert("F")
                if mode == "F"
                else picture(mode)
            )
            image.save(out, "TIFF", **{key: value for key, value in how.items() if key != "mode"})
            return out.getvalue()

        return [one(how) for how in self.variants]


class Gif(Picture):
    name = "damaged.gif"
    form = "GIF"
    variants = ({"mode": "P"}, {"mode": "L"}, {"mode": "P", "transparency": 3})


class Bmp(Picture):
    name = "damaged.bmp"
    form = "BMP"
    variants = ({}, {"mode": "P"}, {"mode": "L"}, {"mode": "1"}, {"mode": "RGBA"})


class Exif(Picture):
    """The block alone is damaged; the picture around it is whole."""

    name = "damaged.jpg"

    def good(self):
        from PIL import Image

        exif = Image.Exif()
        exif[0x0112], exif[0x010F], exif[0x011A], exif[0x0100] = 6, "maker", 72.0, 40
        exif.get_ifd(0x8769)[0x9003] = "2026:11:27 10:00:00"
        exif.get_ifd(0x8825)[2] = (52.0, 30.0, 1.0)
        return [exif.tobytes(), b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI4s", 0x112, 3, 1, b"\6") + b"\0" * 4]

    def undamaged(self):
        return [written("JPEG", exif=block) for block in self.seeds]

    def mutate(self, chance):
        block = damage(chance.choice(self.seeds), chance)[:60_000]
        form = chance.choice(("JPEG", "PNG", "WEBP"))
        whole = written(form, exif=b"Exif\0\0MM\0*REPLACED")
        if form == "PNG":
            out, body = io.BytesIO(written("PNG")), block.removeprefix(b"Exif\0\0")
            data = out.getvalue()
            return data[:33] + struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body)) + data[33:]
        if form == "WEBP":
            at = whole.index(b"EXIF")
            length = struct.unpack("<I", whole[at + 4 : at + 8])[0]
            after = whole[at + 8 + length + length % 2 :]
            data = whole[: at + 4] + struct.pack("<I", len(block)) + block + b"\0" * (len(block) % 2) + after
            return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
        at = whole.index(b"\xff\xe1")
        length = struct.unpack(">H", whole[at + 2 : at + 4])[0]
        return whole[: at + 2] + struct.pack(">H", len(block) + 2) + block + whole[at + 2 + length :]


class Mask(Png):
    name = "photo-masklabel.png"
    names = ("photo-masklabel.png",)
    form = "PNG"
    variants = ({"mode": "L"}, {"mode": "1"}, {"mode": "RGBA"}, {"mode": "LA"})

    def good(self):
        (self.place / "photo.png").write_bytes(written("PNG"))
        return super().good()

    def load(self):
        return kindred_standalone.load("training.data.photos").read_photos(self.place, lambda sentence: None)


class Caption(Mask):
    name = "photo.txt"
    names = ("photo.txt",)

    def good(self):
        super().good()
        return ["a photo of a {token} {class} asleep\n", "ein für ü 犬\n\n", "\ufeffa"]

    def undamaged(self):
        return [text.encode() for text in self.seeds]

    def mutate(self, chance):
        return damage_text(chance.choice(self.seeds), ("{token}", "\0", "\ufeff", "\ud800", "犬", "\u2028", "\r\n", "{", "<v1>"), chance)


KINDS = {
    "png": Png, "jpeg": Jpeg, "webp": Webp, "avif": Avif, "tiff": Tiff, "gif": Gif, "bmp": Bmp, "exif": Exif, "mask": Mask, "caption": Caption,
}  # fmt: skip
