"""What `beside_packs.py` runs with each pack, by the name of its repository. Node names and inputs are theirs, as of the commits in docs/compatibility.md."""

from __future__ import annotations

from functools import partial

import beside_packs_files as files
import beside_packs_tokens as tokens
from beside_packs_frame import Case, out
from beside_packs_rows import RowsCase

# ---- no pack: the harness itself --------------------------------------------------------------------------------------------------

NOTHING = [Case("no other pack", dual=True, tunings=("lora", "kv", "convolutions", "full"), orders=("pack first",))]


# ---- AnimateDiff-Evolved -----------------------------------------------------------------------------------------------------------


def animate(context=None, motion: bool = True):
    def apply(scene, model):
        add, inputs = scene.graph.add, {}
        if motion:
            path = scene.files.folder / "animatediff_models" / "motion.safetensors"
            if not path.exists():
                files.motion_module(path)
            module = add("ADE_LoadAnimateDiffModel", model_name=path.name)
            inputs["m_models"] = add("ADE_ApplyAnimateDiffModel", motion_model=module, start_percent=0.0, end_percent=1.0)
        if context:
            node, options = context
            inputs["context_options"] = add(node, **options)
        return add("ADE_UseEvolvedSampling", model=model, beta_schedule="autoselect", **inputs)

    return apply


WINDOWS = (
    "ADE_StandardStaticContextOptions",
    {"context_length": 4, "context_overlap": 1, "fuse_method": "pyramid", "start_percent": 0.0, "guarantee_steps": 1, "use_on_equal_length": False},
)
LOOPED = (
    "ADE_LoopedUniformContextOptions",
    {
        "context_length": 3,
        "context_stride": 1,
        "context_overlap": 1,
        "closed_loop": True,
        "fuse_method": "flat",
        "start_percent": 0.0,
        "guarantee_steps": 1,
        "use_on_equal_length": False,
    },
)
ANIMATEDIFF = [
    Case("motion module, context windows", animate(WINDOWS), batches=(6,), tunings=("lora", "convolutions"), base="wide"),
    Case("motion module, looped windows", animate(LOOPED), batches=(6,), tunings=("kv",), base="wide"),
    Case("motion module, no windows", animate(), batches=(4,), tunings=("lora",), base="wide"),
    Case("context windows, no motion module", animate(WINDOWS, motion=False), batches=(6,)),
    Case("context windows, no motion module, whole fine-tune", animate(WINDOWS, motion=False), batches=(6,), tunings=("full",)),
]


# ---- regions: couplers that repeat rows inside the cross attention ------------------------------------------------------------------

TEXTS = ("a cat", "a red house by a lake", "snow")


def regions(count: int, node: str):
    """`count` regions beside the base prompt; all masks overlap the whole picture in part."""

    def apply(scene, model):
        inputs = {"base_mask": scene.half(True)}
        if node == "AttentionCouplePPM":
            inputs["base_cond"] = scene.positive
        for i in range(count):
            inputs[f"cond_{i + 1}"] = scene.text(TEXTS[i])
            inputs[f"mask_{i + 1}"] = scene.half(False, 0.5 + 0.1 * i)
        return scene.graph.add(node, model=model, **inputs)

    return apply


def one(node: str, **inputs):
    """The pack's node with these inputs; a callable input gets the scene."""

    def apply(scene, model):
        return scene.graph.add(node, model=model, **{name: value(scene) if callable(value) else value for name, value in inputs.items()})

    return apply


def negpip_texts(scene):
    clip = out(scene.graph.add("CLIPNegPip", model=scene.loaded, clip=scene.clip), 1)
    scene.positive, scene.negative = scene.text("a photo of a dog, (rain:-1.2)", clip), scene.text("blurry", clip)


PPM = [
    *(
        Case(f"Attention Couple, {count + 1} regions", regions(count, "AttentionCouplePPM"), tunings=("lora", "kv") if count == 2 else ("kv",), batches=(1, 2))
        for count in (1, 2, 3)
    ),
    Case("CLIP NegPip", lambda scene, model: scene.graph.add("CLIPNegPip", model=model, clip=scene.clip), negpip_texts, tunings=("kv",)),
]
COUPLE = "AttentionCouple|cgem156"
CGEM = [Case(f"Attention Couple, {count + 1} regions", regions(count, COUPLE), tunings=("kv",), batches=(1, 2)) for count in (1, 2, 3)]


def coupled_texts(batch_negative: bool, both: bool = False):
    def prepare(scene):
        add = scene.graph.add
        scene.positive = add("PCLazyTextEncode", clip=scene.clip, text="a dog FILL() COUPLE(0.5 1) a cat COUPLE(0 0.3) snow")
        if both:
            scene.negative = add("PCLazyTextEncode", clip=scene.clip, text="blurry FILL() COUPLE(0.5 1) dark")
        if batch_negative:
            pair = add("PCAttentionCoupleBatchNegative", positive=scene.positive, negative=scene.negative)
            scene.positive, scene.negative = pair, out(pair, 1)

    return prepare


def scheduled(scene):
    scene.positive = scene.graph.add("PCLazyTextEncode", clip=scene.clip, text="a [dog:cat:0.5] in a garden")


PROMPT_CONTROL = [
    Case("COUPLE, 3 regions", None, coupled_texts(False), tunings=("kv",)),
    Case("COUPLE, 3 regions, negative batched", None, coupled_texts(True), tunings=("kv",), batches=(1, 2)),
    Case("COUPLE on both sides", None, coupled_texts(False, both=True), tunings=("kv",)),
    Case("scheduled prompt", None, scheduled, tunings=("lora",)),
]


# ---- tiles and windows ------------------------------------------------------------------------------------------------------------


def tiles(method: str, batch: int):
    return one("TiledDiffusion", method=method, tile_width=64, tile_height=64, tile_overlap=32, tile_batch_size=batch)


TILED = [
    Case("MultiDiffusion, 4 tiles at once", tiles("MultiDiffusion", 4), dual=True, size=128, batches=(1, 2)),
    Case("Mixture of Diffusers, 3 tiles at once", tiles("Mixture of Diffusers", 3), tunings=("kv",), size=128),
    Case("SpotDiffusion, 2 tiles at once", tiles("SpotDiffusion", 2), tunings=("kv",), size=128),
]


# ---- other guidance ---------------------------------------------------------------------------------------------------------------

_SIGMAS = {"sigma_start": -1.0, "sigma_end": -1.0}
_RESCALE = {"rescale": 0.2, "rescale_mode": "full"}
_BLOCK = {"unet_block": "middle", "unet_block_id": 0}
PERTURBED = [
    Case("Perturbed-Attention Guidance", one("PerturbedAttention", scale=3.0, adaptive_scale=0.0, **_BLOCK, **_SIGMAS, **_RESCALE), tunings=("kv",)),
    Case("Smoothed Energy Guidance", one("SmoothedEnergyGuidanceAdvanced", scale=3.0, blur_sigma=2.0, **_BLOCK, **_SIGMAS, **_RESCALE), tunings=("kv",)),
    Case(
        "Sliding Window Guidance",
        one("SlidingWindowGuidanceAdvanced", scale=5.0, tile_width=64, tile_height=64, tile_overlap=32, **_SIGMAS),
        tunings=("kv",),
        size=128,
    ),
    Case(
        "Normalized Attention Guidance",
        one("NormalizedAttentionGuidance", negative=lambda scene: scene.text("ugly"), scale=2.0, tau=2.5, alpha=0.5, **_SIGMAS),
        fresh=True,
    ),
    Case(
        "Token Perturbation Guidance",
        one("TokenPerturbationGuidance", scale=3.0, unet_block_list="d0,m0,u0", **_SIGMAS, **_RESCALE),
        tunings=("kv",),
        fresh=True,
    ),
    Case("Frequency-Decoupled Guidance", one("FrequencyDecoupledGuidance", strength_high=12.0), tunings=("kv",)),
]
AUTOMATIC = [
    Case("Automatic CFG, hard mode and boost", one("Automatic CFG", hard_mode=True, boost=True), tunings=("kv",)),
    Case("Automatic CFG, no boost", one("Automatic CFG", hard_mode=False, boost=False), tunings=("kv",)),
]
SKIMMED = [Case("Skimmed CFG", one("Skimmed CFG", Skimming_CFG=4.0, full_skim_negative=True, disable_flipping_filter=False), tunings=("kv",))]
THRESHOLD = [Case("Dynamic Thresholding", one("DynamicThresholdingSimple", mimic_scale=4.0, threshold_percentile=0.95), tunings=("kv",))]
FREEU = [
    Case(
        "FreeU V2",
        one(
            "WAS_FreeU_V2",
            input_block=True,
            middle_block=True,
            output_block=True,
            multiscale_mode="Default",
            multiscale_strength=1.0,
            slice_b1=320,
            slice_b2=160,
            b1=1.1,
            b2=1.2,
            s1=0.9,
            s2=0.2,
        ),
        tunings=("kv",),
    )
]
WAVESPEED = [
    Case(
        "First Block Cache at threshold 0",
        one("ApplyFBCacheOnModel", object_to_patch="diffusion_model", residual_diff_threshold=0.0, start=0.0, end=1.0, max_consecutive_cache_hits=-1),
    )
]
KJNODES = [Case("CFG-Zero* and init", one("CFGZeroStarAndInit", use_zero_init=True, zero_init_steps=0), tunings=("kv",))]


def inspire_sampler(scene):
    scene.node = "KSampler //Inspire"
    scene.sampler |= {"noise_mode": "CPU", "batch_seed_mode": "incremental", "variation_seed": 0, "variation_strength": 0.0}


INSPIRE = [
    Case("KSampler (inspire)", None, inspire_sampler, tunings=("kv",)),
    Case("RegionalCFG", one("RegionalCFG //Inspire", mask=lambda scene: scene.half()), tunings=("kv",)),
]


# ---- images: IP-Adapter, ControlNet -------------------------------------------------------------------------------------------------


def image_prompt(scene, model):
    adapter = scene.graph.add("IPAdapterModelLoader", ipadapter_file=files.ip_adapter(scene.files.folder))
    positive, negative = (scene.graph.add("IPAdapterLoadEmbeds", embeds=name) for name in ("positive.ipadpt", "negative.ipadpt"))
    inputs = {"weight": 1.0, "weight_type": "linear", "start_at": 0.0, "end_at": 1.0, "embeds_scaling": "V only"}
    return scene.graph.add("IPAdapterEmbeds", model=model, ipadapter=adapter, pos_embed=positive, neg_embed=negative, **inputs)


IPADAPTER = [Case("IPAdapter Embeds", image_prompt)]


def apply_control(scene, control, image, strength: float) -> None:
    """`control` on both sides of the scene."""
    inputs = {
        "positive": scene.positive,
        "negative": scene.negative,
        "control_net": control,
        "image": image,
        "strength": strength,
        "start_percent": 0.0,
        "end_percent": 1.0,
    }
    pair = scene.graph.add("ACN_AdvancedControlNetApply_v2", **inputs)
    scene.positive, scene.negative = pair, out(pair, 1)


def advanced_control(scene):
    files.control_net(scene.files.folder)
    control = scene.graph.add("ControlNetLoaderAdvanced", control_net_name="control.safetensors")
    apply_control(scene, control, scene.graph.add("EmptyImage", width=128, height=128, batch_size=1, color=0x80FF20), 0.8)


def reference(scene):
    image = scene.graph.add("EmptyImage", width=128, height=128, batch_size=1, color=0x80FF20)
    pixels = scene.graph.add("ACN_ReferencePreprocessor", image=image, vae=scene.vae, latent_size=scene.latent)
    apply_control(scene, scene.graph.add("ACN_ReferenceControlNet", reference_type="reference_attn", style_fidelity=0.5, ref_weight=1.0), pixels, 1.0)


CONTROL = [
    Case("Apply Advanced ControlNet", None, advanced_control, tunings=("kv",)),
    Case("Reference ControlNet", None, reference, tunings=("kv",)),
]


# ---- other loaders ------------------------------------------------------------------------------------------------------------------


def power_lora(graph, made, tuning):
    base = graph.add("CheckpointLoaderSimple", ckpt_name=made.base("tiny"))
    if not tuning:
        return base, base
    lora = {"on": True, "lora": made.adapter("tiny", tuning), "strength": files.STRENGTH}
    return graph.add("Power Lora Loader (rgthree)", model=base, clip=out(base, 1), lora_1=lora), base


RGTHREE = [Case("Power Lora Loader", load=power_lora, orders=("pack first",))]


def quantised(graph, made, tuning, kind):
    precise = {"dequant_dtype": "float32", "patch_dtype": "float32", "patch_on_device": False}  # their default computes weights in half precision
    base = graph.add("UnetLoaderGGUFAdvanced", unet_name=f"tiny-{kind}.gguf", **precise)
    if not tuning:
        return base, base
    return graph.add("LoraLoaderModelOnly", model=base, lora_name=made.adapter(f"gguf-{kind}", tuning), strength_model=files.STRENGTH), base


GGUF = [
    Case(f"UNet in {kind}", load=partial(quantised, kind=kind), base=f"gguf-{kind}", tunings=tunings, orders=("pack first",), batches=(2,))
    for kind, tunings in (("Q8_0", ("lora", "kv", "dora")), ("Q4_0", ("lora", "kv", "dora")), ("F16", ("lora", "kv")))
]


def denoiser(scene, model):
    return scene.graph.add("smZ Settings", **{"*": model, "Use CFGDenoiser": True, "RNG": "cpu"})


SMZ = [Case("Settings: CFGDenoiser", denoiser, tunings=("kv",))]

_CASES = {
    "nothing": NOTHING + tokens.CORE,
    "ComfyUI-AnimateDiff-Evolved": ANIMATEDIFF,
    "ComfyUI-ppm": PPM + tokens.PPM,
    "cgem156-ComfyUI": CGEM,
    "comfyui-prompt-control": tokens.PROMPT_CONTROL + PROMPT_CONTROL,
    "ComfyUI-TiledDiffusion": TILED,
    "sd-perturbed-attention": PERTURBED,
    "ComfyUI-AutomaticCFG": AUTOMATIC,
    "Skimmed_CFG": SKIMMED,
    "sd-dynamic-thresholding": THRESHOLD,
    "FreeU_Advanced": FREEU,
    "Comfy-WaveSpeed": WAVESPEED,
    "ComfyUI-KJNodes": KJNODES,
    "ComfyUI-Inspire-Pack": INSPIRE,
    "ComfyUI_IPAdapter_plus": IPADAPTER,
    "ComfyUI-Advanced-ControlNet": CONTROL,
    "rgthree-comfy": RGTHREE,
    "ComfyUI-GGUF": GGUF,
    "ComfyUI_ADV_CLIP_emb": tokens.ADVANCED,
    "ComfyUI_smZNodes": tokens.SMZ + SMZ,
}
# Each use of a pack once more, with two concepts that act on their token's rows.
CASES = {pack: [*cases, *(RowsCase(case) for case in cases if isinstance(case, Case))] for pack, cases in _CASES.items()}
