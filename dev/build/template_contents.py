"""What the example workflows hold: nodes with their places and inputs, groups, and the note that explains them. `templates.py` lays them out."""

from __future__ import annotations

from dataclasses import dataclass, field

SD15 = "v1-5-pruned-emaonly-fp16.safetensors"
PROMPT = "a photo of a <v1> dog wearing headphones on the beach"


@dataclass(frozen=True)
class Node:
    """A node by its class; `inputs` are values, or "@Title:output" for a link. Place and size in the canvas's pixels."""

    kind: str
    x: int
    y: int
    width: int
    height: int
    inputs: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Workflow:
    """nodes by title; groups (title, x, y, width, height); a note in Markdown and its place; `shown`: the nodes whose pictures make the thumbnail."""

    nodes: dict[str, Node]
    groups: list[tuple]
    note: str
    note_place: tuple[int, int, int, int]
    shown: tuple[str, ...]


def base(x: int = 0, y: int = 60) -> Node:
    return Node("CheckpointLoaderSimple", x, y, 320, 100, {"ckpt_name": SD15})


def load(y: int, name: str = "my_dog") -> Node:
    return Node("KindredLoad", 0, y, 320, 150, {"model": "@Base model:0", "clip": "@Base model:1", "name": name, "strength": 1.0})


def size(y: int, width: int = 512, pictures: int = 1) -> Node:
    return Node("EmptyLatentImage", 0, y, 320, 110, {"width": width, "height": 512, "batch_size": pictures})


def say(y: int, text: str, clip: str, height: int = 130, x: int = 400) -> Node:
    return Node("CLIPTextEncode", x, y, 400, height, {"clip": clip, "text": text})


def turned(y: int, text: str, **more) -> Node:
    """A prompt by Text Encode Concept, toward the class prompt as the base model reads it."""
    return Node("KindredTextEncode", 400, y, 400, 300, {"clip": "@Load:1", "text": text, "alpha": 0.2, "beta": 0.5, **more, "class_clip": "@Base model:1"})


SAMPLING = {"seed": 1, "steps": 30, "cfg": 7.5, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0}


def ksampler(x: int, y: int, positive: str = "@Prompt:0", model: str = "@Load:0", latent: str = "@Size:0") -> Node:
    return Node("KSampler", x, y, 320, 270, {"model": model, "positive": positive, "negative": "@Negative:0", "latent_image": latent, **SAMPLING})


def guided(x: int, y: int, omega: float) -> Node:
    links = {"model": "@Load:0", "base_model": "@Base model:0", "positive": "@Prompt:0", "negative": "@Negative:0", "latent_image": "@Size:0"}
    return Node("KindredKSampler", x, y, 320, 320, {**links, "omega": omega, **SAMPLING})


def decode(x: int, y: int, samples: str) -> Node:
    return Node("VAEDecode", x, y, 220, 50, {"samples": f"@{samples}:0", "vae": "@Base model:2"})


def save(x: int, y: int, images: str, prefix: str, width: int = 340, height: int = 330) -> Node:
    return Node("SaveImage", x, y, width, height, {"images": f"@{images}:0", "filename_prefix": f"kindred/{prefix}"})


def side_by_side(x: int, y: int, images: list[str], labels: list[str], title: str) -> Node:
    pictures = {f"images.image_{index}": f"@{image}:0" for index, image in enumerate(images)}
    return Node("KindredGrid", x, y, 360, 330, {**pictures, "labels": "\n".join(labels), "title": title, "columns": 0})


TRAINING = {
    "method": "kv + token",
    "spl_weight": 1.0,
    "learning_rate": "auto",
    "resolution": "auto",
    "seed": 0,
    "resume": "new run",
}
BASE_LINKS = {"model": "@Base model:0", "clip": "@Base model:1", "vae": "@Base model:2"}


def concept(y: int, photos: str, token: str, word: str, x: int = 380) -> Node:
    links = {"images": f"@{photos}:0", "masks": f"@{photos}:1", "captions": f"@{photos}:2"}
    return Node("KindredConcept", x, y, 380, 300, {**links, "token": token, "class_word": word})


TRAIN = Workflow(
    {
        "Base model": base(),
        "Photos": Node("KindredPhotos", 0, 240, 320, 110, {"folder": "my_dog"}),
        "Concept": concept(240, "Photos", "<v1>", "dog"),
        "Train": Node("KindredTrain", 820, 60, 400, 600, {**BASE_LINKS, "concepts.concept_0": "@Concept:0", **TRAINING, "steps": 500, "preview_every": 100}),
        "Save": Node("KindredSave", 1280, 60, 360, 220, {"lora": "@Train:2", "tokens": "@Train:3", "name": "my_dog", "overwrite": False, "dtype": "float16"}),
        "Loss": Node("LossGraphNode", 1280, 400, 360, 320, {"loss": "@Train:4", "filename_prefix": "loss"}),
    },
    [
        ("1  base model and photos", -20, -20, 360, 400),
        ("2  what to call it", 360, 160, 420, 520),
        ("3  train it, close to its class", 800, -20, 440, 780),
        ("4  save it", 1260, -20, 400, 780),
    ],
    "Put three to six photos of one subject into a new folder in ComfyUI's **input** folder. Choose it in *Load Photos*, say what the subject is in **class_word**, and queue.\n\n"
    "The paper uses 500 steps for one subject. A preview is drawn every 100 steps. To continue a stopped run, set **resume** to *continue* and queue again.\n\n"
    "*Save Concept* saves a LoRA and an embedding. Draw with them in *use_a_saved_concept*.",
    (0, 420, 320, 260),
    ("Train",),
)

USE = Workflow(
    {
        "Base model": base(),
        "Load": load(230),
        "Size": size(450),
        "Text": Node("PrimitiveStringMultiline", 400, 60, 400, 140, {"value": PROMPT}),
        "Prompt": say(260, "@Text:0", "@Load:1", 90),
        "Prompt with TEA": turned(410, "@Text:0"),
        "Negative": say(850, "", "@Base model:1", 110),
        "CFG": ksampler(880, 60),
        "Guidance": guided(880, 490, 0.6),
        "CFG with TEA": ksampler(880, 950, "@Prompt with TEA:0"),
        **{
            title: node
            for name, sampler, y in (("plain CFG", "CFG", 60), ("Personalization Guidance", "Guidance", 490), ("TEA", "CFG with TEA", 950))
            for title, node in (("Decode " + name, decode(1250, y, sampler)), (name, save(1540, y, "Decode " + name, name)))
        },
    },
    [
        ("1  the base model and the concept", -20, -20, 360, 600),
        ("2  say it", 380, -20, 440, 1010),
        ("3  draw it: plain CFG", 860, -20, 1040, 430),
        ("Personalization Guidance: away from the weights between base and tuned, at the cost of CFG", 860, 420, 1040, 430),
        ("Test-time Embedding Adjustment: the prompt rotated toward its class", 860, 880, 1040, 430),
    ],
    "Write the prompt once, with the subject's token. *Prompt with TEA* is Text Encode Concept: it builds the same prompt without the token "
    "(a photo of a dog ...), encodes it with the base model's CLIP, and rotates yours part of the way toward it.\n\n"
    "**omega** 0 to 0.3 favours the subject, 0.4 to 0.6 balances, 1 is plain CFG; it matters for LoRAs, while a concept on its token's rows (*kv + token*) has the base "
    "model's empty prompt in any case. **alpha** 0.1 to 0.3 brings back what the prompt asks for besides the subject.",
    (0, 620, 320, 390),
    ("plain CFG", "Personalization Guidance", "TEA"),
)


def _guider(y: int, mode: str, omega: float) -> Node:
    links = {"model": "@Load:0", "base_model": "@Base model:0", "positive": "@Prompt:0", "negative": "@Negative:0"}
    return Node("KindredGuider", 860, y, 320, 260, {**links, "cfg": 7.5, "omega": omega, "mode": mode, "scale": 1.0})


def _custom(y: int, guider: str) -> Node:
    links = {"noise": "@Noise:0", "guider": f"@{guider}:0", "sampler": "@Sampler:0", "sigmas": "@Steps:0", "latent_image": "@Size:0"}
    return Node("SamplerCustomAdvanced", 1240, y, 280, 130, links)


GUIDERS = ("CFG", "AutoGuidance", "Personalization Guidance")
GUIDANCE = Workflow(
    {
        "Base model": base(),
        "Load": load(230),
        "Size": size(450),
        "Prompt": say(60, PROMPT, "@Load:1"),
        "Negative": say(250, "", "@Base model:1", 110),
        "Noise": Node("RandomNoise", 400, 430, 400, 90, {"noise_seed": 1}),
        "Sampler": Node("KSamplerSelect", 400, 570, 400, 60, {"sampler_name": "dpmpp_2m"}),
        "Steps": Node("BasicScheduler", 400, 680, 400, 110, {"model": "@Load:0", "scheduler": "karras", "steps": 30, "denoise": 1.0}),
        "CFG": Node("CFGGuider", 860, 60, 320, 110, {"model": "@Load:0", "positive": "@Prompt:0", "negative": "@Negative:0", "cfg": 7.5}),
        "AutoGuidance": _guider(360, "autoguidance", 0.0),
        "Personalization Guidance": _guider(790, "personalization", 0.6),
        **{"Draw " + name: _custom(y, name) for name, y in zip(GUIDERS, (60, 360, 790), strict=True)},
        **{"Decode " + name: decode(1240, y, "Draw " + name) for name, y in zip(GUIDERS, (250, 550, 980), strict=True)},
        "Side by side": side_by_side(1580, 60, ["Decode " + name for name in GUIDERS], ["CFG", "CFG + AutoGuidance", "Personalization Guidance"], ""),
        "Comparison": save(1580, 450, "Side by side", "guidance", 560, 420),
    },
    [
        ("1  the base model and the concept", -20, -20, 360, 600),
        ("2  prompt and sampling", 380, -20, 440, 850),
        ("3  three ways to guide, on the same noise", 840, -20, 700, 1220),
        ("4  compare", 1560, -20, 600, 1220),
    ],
    "For a LoRA of yours, or a concept that was trained with **rows** *all* or as a LoRA. One on its token's rows (*kv + token*) leaves the empty prompt to the base "
    "model already, so every omega draws what plain CFG draws.\n\n"
    "**CFG** guides away from the tuned model on the empty prompt.\n\n**AutoGuidance** also guides away from the base model on the same prompt: three predictions a step.\n\n"
    "**Personalization Guidance** guides away from the weights *between* base and tuned, on the empty prompt: two predictions a step, like CFG. In the paper, "
    "subject fidelity rises (DINO .470 to .502) and prompt fidelity falls a little (CLIP-T .335 to .329).",
    (0, 620, 320, 520),
    ("Comparison",),
)

OMEGAS = (1.0, 0.75, 0.5, 0.25, 0.0)
SWEEP = Workflow(
    {
        "Base model": base(),
        "Load": load(230),
        "Size": size(450, pictures=2),
        "Prompt": say(60, PROMPT, "@Load:1"),
        "Negative": say(250, "", "@Base model:1", 110),
        **{f"omega {omega:g}": guided(860 + 360 * index, 60, omega) for index, omega in enumerate(OMEGAS)},
        **{f"Decode {omega:g}": decode(860 + 360 * index, 490, f"omega {omega:g}") for index, omega in enumerate(OMEGAS)},
        "Grid": side_by_side(400, 640, [f"Decode {omega:g}" for omega in OMEGAS], ["omega 1 = CFG", *(f"omega {omega:g}" for omega in OMEGAS[1:])], ""),
        "Sweep": save(860, 660, "Grid", "omega", 1760, 640),
    },
    [
        ("1  the base model and the concept", -20, -20, 360, 600),
        ("2  say it", 380, -20, 440, 420),
        ("3  Personalization Guidance from plain CFG (omega 1) to the base model as the weak one (omega 0)", 840, -20, 1800, 570),
        ("4  all in one picture", 380, 560, 2260, 780),
    ],
    "For a LoRA of yours, or a concept that was trained with **rows** *all* or as a LoRA. One on its token's rows (*kv + token*) leaves the empty prompt to the base "
    "model already, so every omega draws what plain CFG draws.\n\n"
    "The same noise five times; only **omega** differs. Left is plain CFG, right is closest to the subject. Each column shows two seeds.\n\n"
    "The paper's best: 0.6 for DreamBooth LoRA, 0 for ClassDiffusion. Take the lowest omega at which the picture still follows the prompt.",
    (0, 620, 320, 470),
    ("Sweep",),
)

TEA = Workflow(
    {
        "Base model": base(),
        "Load": load(230),
        "Size": size(450),
        "Off": say(60, PROMPT, "@Load:1"),
        "TEA": turned(250, PROMPT),
        "TEA, automatic": turned(670, PROMPT, auto_alpha=True),
        "Negative": say(1070, "", "@Base model:1", 110),
        "Draw off": ksampler(880, 60, "@Off:0"),
        "Draw TEA": ksampler(880, 420, "@TEA:0"),
        "Draw automatic": ksampler(880, 780, "@TEA, automatic:0"),
        "Decode off": decode(1240, 60, "Draw off"),
        "Decode TEA": decode(1240, 420, "Draw TEA"),
        "Decode automatic": decode(1240, 780, "Draw automatic"),
        "Side by side": side_by_side(1520, 60, ["Decode off", "Decode TEA", "Decode automatic"], ["as learned", "TEA, alpha 0.2", "TEA, automatic alpha"], ""),
        "Comparison": save(1520, 450, "Side by side", "tea", 560, 420),
        "Drift": Node(
            "KindredDrift", 2140, 60, 360, 330, {"clip": "@Load:1", "token": "<v1>", "class_word": "dog", "base_clip": "@Base model:1", "prompts": ""}
        ),
        "Drift plot": Node("SaveImage", 2140, 450, 460, 560, {"images": "@Drift:1", "filename_prefix": "kindred/drift"}),
    },
    [
        ("1  the base model and the concept", -20, -20, 360, 600),
        ("2  the same prompt three times", 380, -20, 440, 1230),
        ("3  draw", 860, -20, 620, 1230),
        ("4  compare", 1500, -20, 600, 1230),
        ("5  how far the token has drifted", 2120, -20, 500, 1230),
    ],
    "Test-time Embedding Adjustment rotates the prompt part of the way toward the same prompt with the plain class word. Nothing is trained.\n\n"
    "**alpha** sets how far. *auto_alpha* takes the smallest alpha that keeps 80% of the scene, and shows it on the node.\n\n"
    "The plot shows if there is anything to repair: a token much longer than all words, or far from its class among seventy adjectives.",
    (0, 620, 320, 360),
    ("Comparison", "Drift plot"),
)

TWO = Workflow(
    {
        "Base model": base(),
        "Photos of the first": Node("KindredPhotos", 0, 240, 320, 110, {"folder": "my_dog"}),
        "Photos of the second": Node("KindredPhotos", 0, 420, 320, 110, {"folder": "my_cat"}),
        "First": concept(60, "Photos of the first", "<v1>", "dog"),
        "Second": concept(460, "Photos of the second", "<v2>", "cat"),
        "Train": Node(
            "KindredTrain",
            820,
            60,
            400,
            600,
            {**BASE_LINKS, "concepts.concept_0": "@First:0", "concepts.concept_1": "@Second:0", **TRAINING, "steps": 800, "preview_every": 200},
        ),
        "Save": Node(
            "KindredSave", 1280, 60, 400, 220, {"lora": "@Train:2", "tokens": "@Train:3", "name": "my_dog_and_cat", "overwrite": False, "dtype": "float16"}
        ),
        "Together": say(400, "a photo of a <v1> dog and a <v2> cat on the beach", "@Train:1", 120, 1280),
        "Left": say(580, "a photo of a <v1> dog on the beach", "@Train:1", 110, 1280),
        "Right": say(750, "a photo of a <v2> cat on the beach", "@Train:1", 110, 1280),
        "Negative": say(920, "", "@Base model:1", 100, 1280),
        "Left half": Node(
            "ConditioningSetAreaPercentage", 1760, 560, 320, 160, {"conditioning": "@Left:0", "width": 0.5, "height": 1.0, "x": 0.0, "y": 0.0, "strength": 1.0}
        ),
        "Right half": Node(
            "ConditioningSetAreaPercentage", 1760, 780, 320, 160, {"conditioning": "@Right:0", "width": 0.5, "height": 1.0, "x": 0.5, "y": 0.0, "strength": 1.0}
        ),
        "Both": Node("ConditioningCombine", 2130, 560, 240, 60, {"conditioning_1": "@Left half:0", "conditioning_2": "@Right half:0"}),
        "All": Node("ConditioningCombine", 2130, 400, 240, 60, {"conditioning_1": "@Together:0", "conditioning_2": "@Both:0"}),
        "Size": Node("EmptyLatentImage", 2420, 400, 320, 110, {"width": 1024, "height": 512, "batch_size": 1}),
        "Draw": Node(
            "KindredKSampler",
            2420,
            560,
            320,
            320,
            {
                "model": "@Train:0",
                "base_model": "@Base model:0",
                "positive": "@All:0",
                "negative": "@Negative:0",
                "latent_image": "@Size:0",
                "omega": 0.6,
                **SAMPLING,
            },
        ),
        "Decode": decode(2420, 940, "Draw"),
        "Picture": save(1760, 60, "Decode", "two_concepts", 980, 240),
    },
    [
        ("1  base model and photos", -20, -20, 360, 580),
        ("2  what to call them", 360, -20, 420, 860),
        ("3  train both, each close to its class", 800, -20, 440, 860),
        ("4  save them", 1260, -20, 440, 340),
        ("5  prompts for the picture and its halves", 1260, 340, 1130, 700),
        ("6  draw", 2400, 340, 360, 700),
        ("7  look", 1740, -20, 1020, 340),
    ],
    "Each subject has its own token and Concept node. One *Train Concept* learns them together (the paper uses 800 steps) and keeps each close to its class.\n\n"
    "One prompt describes the whole picture, two more describe its halves. Without the halves, the subjects tend to share their looks.",
    (0, 600, 320, 280),
    ("Picture",),
)

SAID = {
    "Your dog": "a photo of a <v1> dog on the beach",
    "Your cat": "a photo of a <v2> cat on the beach",
    "Both": "a photo of a <v1> dog and a <v2> cat on the beach",
    "Any dog": "a photo of a dog on the beach",
}
TWO_SAVED = Workflow(
    {
        "Base model": base(),
        "First": load(230),
        "Second": Node("KindredLoad", 0, 430, 320, 150, {"model": "@First:0", "clip": "@First:1", "name": "my_cat", "strength": 1.0}),
        "Size": size(650),
        "Negative": Node("CLIPTextEncode", 0, 880, 320, 110, {"clip": "@Base model:1", "text": ""}),
        **{f"Prompt: {name}": say(60 + 400 * row, text, "@Second:1", 110) for row, (name, text) in enumerate(SAID.items())},
        **{f"Draw: {name}": ksampler(860, 60 + 400 * row, f"@Prompt: {name}:0", "@Second:0") for row, name in enumerate(SAID)},
        **{f"Decode: {name}": decode(1230, 60 + 400 * row, f"Draw: {name}") for row, name in enumerate(SAID)},
        **{name: save(1500, 60 + 400 * row, f"Decode: {name}", "two_saved_concepts", 340, 300) for row, name in enumerate(SAID)},
    },
    [
        ("1  two saved concepts", -20, -20, 360, 1030),
        ("2  your dog", 380, -20, 1480, 390),
        ("your cat", 380, 380, 1480, 390),
        ("both", 380, 780, 1480, 390),
        ("no token: the base model's own picture", 380, 1180, 1480, 390),
    ],
    "Two concepts that were trained apart, loaded one behind the other. Each acts only on the rows of its own token and of the class word behind it (**rows** "
    "*token*, the default of *kv + token*), so they add up without mixing, and a prompt that names neither draws exactly what the base model draws.\n\n"
    "Train them with different tokens, here `<v1>` and `<v2>`. If one crowds the other out in *both*, lower its **strength**, or give each a region as "
    "*two_concepts* does.",
    (0, 1040, 320, 360),
    ("Your dog", "Your cat", "Any dog"),
)

WORKFLOWS = {
    "train_a_concept": TRAIN,
    "use_a_saved_concept": USE,
    "compare_guidance": GUIDANCE,
    "omega_sweep": SWEEP,
    "tea_and_drift": TEA,
    "two_concepts": TWO,
    "two_saved_concepts": TWO_SAVED,
}
