"""Recipes, embeddings and concepts, for dev/bench/fuzz.py."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile

import kindred_standalone
from fuzz_damage import Kind, damage, damage_text
from fuzz_pictures import written

WIDTHS = {"clip_l": 16}

TOML = """checkpoint = "model.safetensors"
name = "rex"
[train]
method = "kv + token"
steps = 500
learning_rate = 1e-5
resolution = 512
[[concept]]
photos = "photos"
token = "<v1>"
class_word = "dog"
repeats = 2
[preview]
every = 100
prompt = "a photo of a {token} {class}"
[save]
every = 100
dtype = "float16"
overwrite = false
"""


class Recipe(Kind):
    name = "damaged.toml"

    def good(self):
        (self.place / "photos").mkdir()
        (self.place / "photos" / "a.png").write_bytes(written("PNG"))
        return [TOML]

    def undamaged(self):
        return [TOML.encode()]

    def mutate(self, chance):
        words = (
            "[",
            "]",
            "{",
            "}",
            "a.",
            '"',
            "'",
            "'''",
            "=",
            "\n",
            "[[concept]]\n",
            "[train]\n",
            "1e999",
            "nan",
            "inf",
            "-1",
            "9" * 30,
            "true",
            "1979-05-27",
            "\\u0000",
            "\\uD800",
            "#",
            "../",
            "/",
        )
        return damage_text(TOML, words, chance)

    def load(self):
        return kindred_standalone.load("training.recipe").read(self.path).concepts()


def torch_file(content, old: bool = False) -> bytes:
    import torch

    out = io.BytesIO()
    torch.save(content, out, _use_new_zipfile_serialization=not old)
    return out.getvalue()


def safetensors_file(tensors: dict, metadata: dict | None = None) -> bytes:
    from safetensors.torch import save

    return save(tensors, metadata)


def damage_torch(data: bytes, chance: random.Random) -> bytes:
    """Half of the time a file inside of the archive, which is then whole again."""
    if chance.random() < 0.5 or not data.startswith(b"PK"):
        return damage(data, chance)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as whole:
        chosen = chance.choice([name for name in whole.namelist() if name.endswith("data.pkl")] * 3 + whole.namelist())
        with zipfile.ZipFile(out, "w", chance.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))) as archive:
            for name in whole.namelist():
                archive.writestr(name, damage(whole.read(name), chance) if name == chosen else whole.read(name))
    return out.getvalue()


def damage_safetensors(data: bytes, chance: random.Random) -> bytes:
    """Half of the time the header, whose length is then right again."""
    if chance.random() < 0.4:
        return damage(data, chance)
    (length,) = struct.unpack("<Q", data[:8])
    words = (
        "[",
        "]",
        "{",
        "}",
        '"',
        ",",
        ":",
        "0",
        "99999999999",
        "-1",
        "F16",
        "BF16",
        "I64",
        "BOOL",
        "F8_E4M3",
        '"__metadata__":',
        "null",
        "\\u0000",
        "\\ud800",
    )
    header = damage_text(data[8 : 8 + length].decode(), words, chance)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


class Embedding(Kind):
    def load(self):
        return kindred_standalone.load("formats.token_file").load(self.path, WIDTHS)


class Pt(Embedding):
    name = "damaged.pt"

    def good(self):
        import torch

        a1111 = {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": torch.nn.Parameter(torch.ones(2, 16))},
            "name": "rex",
            "step": 500,
            "sd_checkpoint": None,
        }
        return [torch_file(a1111), torch_file(a1111, True), torch_file([{"emb_params": torch.ones(16)}])]

    def mutate(self, chance):
        return damage_torch(chance.choice(self.seeds), chance)


class Bin(Pt):
    name = "damaged.bin"

    def good(self):
        import torch

        one = {"<v1>": torch.ones(16)}
        return [torch_file(one), torch_file(one, True), safetensors_file(one)]


class Safetensors(Embedding):
    name = "damaged.safetensors"

    def good(self):
        import torch

        own = {"kindred.token": "<v1>", "kindred.class_word": "dog", "kindred.encoders": "clip_l", "format": "pt"}
        bundled = {"bundle_emb.rex.clip_l": torch.ones(2, 16), "lora_unet_x.lora_up.weight": torch.ones(4, 2)}
        return [
            safetensors_file({"<v1>": torch.ones(1, 16)}, own),
            safetensors_file({"clip_l": torch.ones(1, 16), "clip_g": torch.ones(1, 20)}),
            safetensors_file(bundled),
        ]

    def mutate(self, chance):
        return damage_safetensors(chance.choice(self.seeds), chance)


class Concept(Kind):
    """A LoRA whose metadata name its tokens, JSON inside of JSON."""

    name = "damaged.safetensors"
    names = ("damaged", "token.safetensors", "embedding's file name", "Token", "token ")

    def good(self):
        import torch

        (self.place / "token.safetensors").write_bytes(safetensors_file({"<v1>": torch.ones(1, 16)}))
        self.tensors = {"diffusion_model.a.lora_up.weight": torch.ones(4, 2), "diffusion_model.a.lora_down.weight": torch.ones(2, 4)}
        self.manifest = json.dumps([{"token": "<v1>", "class_word": "dog", "file": "token.safetensors"}])
        return [safetensors_file(self.tensors, {"kindred.tokens": self.manifest, "ss_tag_frequency": json.dumps({"a": {"b": 1}})})]

    def mutate(self, chance):
        if chance.random() < 0.5:
            return damage_safetensors(self.seeds[0], chance)
        words = ("[", "]", "{", "}", '"', "null", "1", "../", "\\u0000", "C:", "/etc/", "token", "\\ud800")
        return safetensors_file(self.tensors, {"kindred.tokens": damage_text(self.manifest, words, chance).decode("utf-8", "replace")})

    def load(self):
        def find(name):
            return self.place / name if (self.place / name).is_file() else None

        return kindred_standalone.load("formats.concept_file").load(self.path, WIDTHS, find)


class Published(Kind):
    """A folder of Custom Diffusion: its weights or its token damaged."""

    name = "published"
    names = ("published",)

    def good(self):
        import torch

        layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor"
        weights = {f"{layer}.to_{part}_custom_diffusion.weight": torch.ones(8, 16) for part in "kv"}
        self.path.mkdir()
        self.whole = {"pytorch_custom_diffusion_weights.bin": torch_file(weights), "<new1>.bin": torch_file({"<new1>": torch.ones(16)})}
        return list(self.whole)

    def undamaged(self):
        return [name.encode() + b"\n" + content for name, content in self.whole.items()]

    def mutate(self, chance):
        name = chance.choice(self.seeds)
        return name.encode() + b"\n" + damage_torch(self.whole[name], chance)

    def read(self, data):
        name, _, content = data.partition(b"\n")
        for file, whole in self.whole.items():
            (self.path / file).write_bytes(content if file == name.decode() else whole)
        return kindred_standalone.load("formats.published").load(self.path, WIDTHS)


KINDS = {"recipe": Recipe, "pt": Pt, "bin": Bin, "safetensors": Safetensors, "concept": Concept, "published": Published}
