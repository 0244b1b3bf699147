"""Pairs of models for guidance, and what they are compared with: two modules with explicitly interpolated state dicts."""

from __future__ import annotations

import copy
import importlib
import json
import uuid

import torch

from .host import pack, start_host
from .models import sd15

LINEARS = (
    "attn1.to_q",
    "attn1.to_k",
    "attn1.to_v",
    "attn1.to_out.0",
    "attn2.to_q",
    "attn2.to_k",
    "attn2.to_v",
    "attn2.to_out.0",
    "ff.net.0.proj",
    "ff.net.2",
    "attn.qkv",
    "attn.proj",
    "mlp.fc1",
    "mlp.fc2",
)


def comfy(place: str):
    """A module of the host."""
    start_host()
    return importlib.import_module(place)


def base_model(seed: int = 0):
    """(model, clip): the tiny SD 1.5, freshly loaded (a module of its own)."""
    model, clip, _ = sd15(seed)
    return model, clip


def encode(clip, text: str):
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def with_lora(model, state: dict, strength: float = 1.0):
    """A clone with a LoRA file's content, through the host's own loader code."""
    with torch.inference_mode():
        return comfy("comfy.sd").load_lora_for_models(model, None, state, strength, 0)[0]


def targets(model, convolutions: bool = False) -> dict[str, torch.Size]:
    """Weight key without ".weight" -> shape, of the layers that LoRAs are usually made for."""
    state = model.model.diffusion_model.state_dict()
    chosen = {}
    for key, value in state.items():
        name = key.removesuffix(".weight")
        if name != key and (name.endswith(LINEARS) or (convolutions and value.ndim == 4)):
            chosen[name] = value.shape
    return chosen


def lora(model, rank: int = 4, seed: int = 1, size: float = 0.5, convolutions: bool = False, kind: str = "lora", only: str = "", dtype=torch.float32) -> dict:
    """A random adapter file of `kind` (lora, dora, loha, lokr, oft, diff), whose change to each weight is about `size` of the weight's own norm."""
    generator = torch.Generator().manual_seed(seed)
    pristine = pack("host.patcher").pristine  # the module may hold another clone's patches
    out = {}

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    with torch.inference_mode():
        for name, shape in targets(model, convolutions).items():
            if only not in name:
                continue
            key, flat = f"diffusion_model.{name}", shape[1:].numel()
            weight = pristine(model, f"{key}.weight").float()
            norm = size * float(weight.norm())
            if kind in ("lora", "dora"):
                up, down = draw(shape[0], rank), draw(rank, flat)
                up *= norm / float((up @ down).norm())
                ones = [1] * (len(shape) - 2)
                out |= {f"{key}.lora_up.weight": up.reshape(*up.shape, *ones), f"{key}.lora_down.weight": down.reshape(rank, *shape[1:])}
                out[f"{key}.alpha"] = torch.tensor(float(rank))
                if kind == "dora":
                    lengths = weight.flatten(1).norm(dim=1, keepdim=True).reshape(-1, 1, *ones)
                    out[f"{key}.dora_scale"] = lengths * (1 + 0.1 * draw(*lengths.shape))
            elif kind == "loha":
                a1, b1, a2, b2 = draw(shape[0], rank), draw(rank, flat), draw(shape[0], rank), draw(rank, flat)
                a1 *= norm / float(((a1 @ b1) * (a2 @ b2)).norm())
                out |= {f"{key}.hada_w1_a": a1, f"{key}.hada_w1_b": b1, f"{key}.hada_w2_a": a2, f"{key}.hada_w2_b": b2}
                out[f"{key}.alpha"] = torch.tensor(float(rank))
            elif kind == "lokr":
                if shape[0] % 8 or shape[1] % 8:
                    continue
                w1, w2 = draw(8, 8), draw(shape[0] // 8, shape[1] // 8, *shape[2:])
                w1 *= norm / float(w1.norm() * w2.norm())
                out |= {f"{key}.lokr_w1": w1, f"{key}.lokr_w2": w2, f"{key}.alpha": torch.tensor(1.0)}
            elif kind == "oft":
                out |= {f"{key}.oft_blocks": 0.2 * size * draw(shape[0] // 8, 8, 8), f"{key}.alpha": torch.tensor(0.0)}
            elif kind == "diff":
                difference = draw(*shape)
                out[f"{key}.diff"] = difference * (norm / float(difference.norm()))
            else:
                raise ValueError(kind)
    return {key: value.to(dtype) if value.ndim else value for key, value in out.items()}


def personalize(model, base, omega: float, **course):
    """`model` as the pack's nodes patch it."""
    return pack("guidance.guider").personalize(model, base, pack("guidance.schedule").Schedule(omega, **course))


# ---- the truth -------------------------------------------------------------------------------------------------------------------


def merged_state(model) -> dict[str, torch.Tensor]:
    """The weights that a patcher means, merged by the host itself in float32: state dict of the BaseModel."""
    with torch.inference_mode():
        state = {key: value.clone() for key, value in model.model.state_dict().items()}
        for key, entries in model.get_key_patches().items():
            weight, convert = entries[0]
            start = convert(weight.float().clone(), inplace=True)
            state[key] = comfy("comfy.lora").calculate_weight(list(model.patches.get(key, [])), start, key).clone()
    return state


def interpolated(model, base, omega: float):
    """A patcher on a module of its own, with weights explicitly set to omega * model + (1 - omega) * base."""
    tuned, untuned = merged_state(model), merged_state(base)
    with torch.inference_mode():
        mixed = {key: torch.lerp(untuned[key].double(), tuned[key].double(), omega).to(tuned[key]) for key in tuned}
    return with_state(model, mixed)


def with_state(model, state: dict):
    """A patcher without weight patches on a fresh module with the weights `state`, and all other settings of `model`."""
    with torch.inference_mode():
        config = model.model.model_config  # answers any attribute, which deepcopy takes for a protocol
        module = copy.deepcopy(model.model, {id(config): config})
        module.current_weight_patches_uuid, module.current_patcher, module.model_loaded_weight_memory = None, None, 0
        for part in module.modules():
            vars(part).pop("comfy_patched_weights", None)  # the original may be loaded, wholly or in part: its copy is not
            if hasattr(part, "comfy_cast_weights"):
                comfy("comfy.model_patcher").wipe_lowvram_weight(part)
        module.load_state_dict({key: value.clone() for key, value in state.items()}, strict=True, assign=True)
    clone = model.clone(model_override=(module, ({}, {}, {}, set())))
    clone.hook_backup = {}
    clone.patches, clone.patches_uuid = {}, uuid.uuid4()
    return clone


def brute_force(model, base, omega: float):
    """`model` with its weights merged beforehand, whose negative conditions run on another module with interpolated weights.

    Routed by the place of the list among two, and forwarded list by list: nothing of ours is in it.
    """
    weak = interpolated(model, base, omega)
    strong = with_state(model, merged_state(model))
    state = {}

    def sampler_sample(executor, guider, *args, **kwargs):
        state["negative"] = guider.conds.get("negative")
        weak.hook_patches, weak.hook_mode = guider.model_patcher.hook_patches, guider.model_patcher.hook_mode
        weak.model.model_sampling = guider.inner_model.model_sampling
        weak.pre_run()
        weak.inject_model()
        try:
            return executor(guider, *args, **kwargs)
        finally:
            weak.eject_model()
            weak.cleanup()

    def calc(executor, module, conds, x, timestep, options):
        out = []
        for i, one in enumerate(conds):
            is_negative = one is not None and (one is state["negative"] or (len(conds) == 2 and i == 1))
            alone = [one if j == i else None for j in range(len(conds))]  # at its place: patches read it
            out.append(executor(weak.model if is_negative else module, alone, x, timestep, options)[i])
        return out

    wrappers = comfy("comfy.patcher_extension").WrappersMP
    strong.add_wrapper_with_key(wrappers.SAMPLER_SAMPLE, "brute_force", sampler_sample)
    strong.add_wrapper_with_key(wrappers.CALC_COND_BATCH, "brute_force", calc)
    return strong


def sample(model, positive, negative, *, steps=4, cfg=7.5, sampler="euler", scheduler="normal", size=8, batch=1, seed=5, latent=None, **options):
    """The latent that core's KSampler function gives: [batch, 4, size, size]."""
    with torch.inference_mode():
        latent = latent or {"samples": torch.zeros(batch, 4, size, size)}
        return comfy("nodes").common_ksampler(model, seed, steps, cfg, sampler, scheduler, positive, negative, latent, **options)[0]["samples"]


def little_memory(model):
    """The host finds no room for a batch of two: each condition gets a forward of its own."""
    clone = model.clone()

    def one_by_one(executor, module, conds, x, timestep, options):
        patcher = module.current_patcher
        patcher.get_free_memory = lambda device: 0
        try:
            return executor(module, conds, x, timestep, options)
        finally:
            del patcher.get_free_memory

    clone.add_wrapper_with_key("calc_cond_batch", "little_memory", one_by_one)
    return clone


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative error of `a` against `b`."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def node(name: str, **inputs):
    """The outputs of a node of core, called as the host calls it."""
    known = comfy("nodes").NODE_CLASS_MAPPINGS[name]
    with torch.inference_mode():
        if hasattr(known, "execute") and hasattr(known, "define_schema"):
            out = known.execute(**inputs)
            return getattr(out, "args", out)
        return getattr(known(), known.FUNCTION)(**inputs)


def control_net(seed: int = 4):
    """A ControlNet of the tiny UNet's shape, of the host's own class, with random weights."""
    controlnet, cldm, ops = comfy("comfy.controlnet"), comfy("comfy.cldm.cldm"), comfy("comfy.ops")
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        module = cldm.ControlNet(
            image_size=32,
            in_channels=4,
            model_channels=320,
            hint_channels=3,
            num_res_blocks=[1],
            channel_mult=[1],
            num_heads=8,
            use_spatial_transformer=True,
            transformer_depth=[1],
            transformer_depth_middle=1,
            context_dim=768,
            legacy=False,
            dtype=torch.float32,
            operations=ops.disable_weight_init,
        )
        for name, value in module.named_parameters():
            value.data = torch.ones_like(value) if value.ndim == 1 and "weight" in name else torch.randn(value.shape, generator=generator) * 0.02
        return controlnet.ControlNet(module, load_device=torch.device("cpu"))


def reload(state: dict, **options):
    """A model from a UNet's weights through the host's loader, so that it picks the operations for their kind."""
    with torch.inference_mode():
        unet = {key.removeprefix("diffusion_model."): value.clone() for key, value in state.items() if key.startswith("diffusion_model.")}
        return comfy("comfy.sd").load_diffusion_model_state_dict(unet, model_options=options)


def quantised(state: dict) -> dict:
    """The attention weights as scaled fp8 with the host's own markers."""
    out = dict(state)
    for key in [key for key in state if ".attn" in key and key.endswith(".weight") and state[key].ndim == 2]:
        name, weight = key.removesuffix(".weight"), state[key].float()
        scale = weight.abs().amax() / 448.0
        out |= {
            key: (weight / scale).to(torch.float8_e4m3fn),
            f"{name}.weight_scale": scale,
            f"{name}.comfy_quant": torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8),
        }
    return out
