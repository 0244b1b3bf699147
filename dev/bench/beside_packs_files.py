"""The small models of `beside_packs.py`: bases with random weights, adapters, and checkpoints with the weights that guidance should amount to."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

OMEGA, STRENGTH = 0.3, 0.9
PREFIX = "model.diffusion_model."
FINAL_BIAS = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
# SD 1.5's own levels, as AnimateDiff's motion modules ask for, with attention only where it costs little.
WIDE = {
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4], "transformer_depth": [1, 1, 0, 0, 0, 0, 0, 0],
    "transformer_depth_output": [0] * 9 + [1] * 3, "transformer_depth_middle": 1,
}  # fmt: skip
LINEARS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")


class Files:
    """Made where missing, by name: `base`, `adapter`, `tuned` and `weak` give the names that the host's loaders take."""

    def __init__(self, folder: Path):
        self.folder = folder
        for name in ("checkpoints", "loras", "embeddings", "animatediff_models", "diffusion_models", "text_encoders", "ipadapter", "controlnet", "clip_vision"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def base(self, base: str) -> str:
        return f"{base}.safetensors"

    def adapter(self, base: str, tuning: str) -> str:
        return f"{base}-{tuning}.safetensors"

    def tuned(self, base: str, tuning: str) -> str:
        return f"{base}-{tuning}-tuned.safetensors"

    def weak(self, base: str, tuning: str) -> str:
        return f"{base}-{tuning}-weak.safetensors"

    def weak_path(self, base: str, tuning: str) -> str:
        return str(self.folder / "checkpoints" / self.weak(base, tuning))

    def adapters(self, base: str, tunings: tuple[str, ...]) -> None:
        """The base model, and for each of `tunings` its adapter and the checkpoints that it amounts to."""
        self.model(base)
        for tuning in tunings:
            if not Path(self.weak_path(base, tuning)).exists():
                self._tune(self.folder / "checkpoints" / self.base(base), base, tuning, whole=base != "wide")

    def model(self, base: str) -> None:
        """The base model alone."""
        if base.startswith("gguf-") and not (self.folder / "checkpoints" / self.base(base)).exists():
            self._base("tiny")
            quantise(self.folder, base.removeprefix("gguf-"))
        self._base(base)

    def _base(self, base: str) -> None:
        checkpoint = self.folder / "checkpoints" / self.base(base)
        if not checkpoint.exists():
            from kindred_testing.host import start_host

            start_host()
            import random_base

            if base == "wide":
                random_base.UNET.update(WIDE)
            random_base.write(checkpoint, dtype=torch.float32)
            state = load_file(checkpoint)
            state[FINAL_BIAS] += 0.1  # without it the mean of a text's encoding is 0, and some packs divide by that
            save_file(state, checkpoint)

    def _tune(self, checkpoint: Path, base: str, tuning: str, whole: bool) -> None:
        state = load_file(checkpoint)
        adapter, change = make_adapter(state, tuning)
        save_file(adapter, self.folder / "loras" / self.adapter(base, tuning))
        strength = 1.0 if tuning == "full" else STRENGTH
        for name, omega in ((self.tuned(base, tuning), 1.0), (self.weak(base, tuning), OMEGA)):
            mixed = {key: (state[key].double() + omega * strength * delta).float() for key, delta in change.items()}
            save_file(mixed if not whole else {**state, **mixed}, self.folder / "checkpoints" / name)


def make_adapter(state: dict, tuning: str, rank: int = 4) -> tuple[dict, dict]:
    """(an adapter file's content, its change to each weight at strength 1). `lora`, `convolutions` (LoRA on those, too), `kv` (differences), `full`."""
    draw = torch.Generator().manual_seed(11)
    adapter, change = {}, {}
    for key in sorted(state):
        name = key.removeprefix(PREFIX).removesuffix(".weight")
        weight = state[key]
        linear = name.endswith(LINEARS)
        if not key.startswith(PREFIX) or not key.endswith(".weight") or weight.ndim < 2:
            continue
        if not (linear or (tuning == "convolutions" and weight.ndim == 4) or tuning == "full") or (
            tuning == "kv" and not name.endswith(("attn2.to_k", "attn2.to_v"))
        ):
            continue
        norm = 0.5 * float(weight.norm())
        path = f"diffusion_model.{name}"
        if tuning in ("kv", "full"):
            delta = torch.randn(weight.shape, generator=draw)
            delta *= norm / float(delta.norm())
            adapter[f"{path}.diff"] = delta
        else:
            up, down = torch.randn(weight.shape[0], rank, generator=draw), torch.randn(rank, weight[0].numel(), generator=draw)
            up *= norm / float((up @ down).norm())
            ones = [1] * (weight.ndim - 2)
            adapter |= {f"{path}.lora_up.weight": up.reshape(*up.shape, *ones), f"{path}.lora_down.weight": down.reshape(rank, *weight.shape[1:])}
            adapter[f"{path}.alpha"] = torch.tensor(float(rank))
            delta = (up.double() @ down.double()).reshape(weight.shape)
            if tuning == "dora":
                lengths = weight.double().norm(dim=1, keepdim=True) * (1 + 0.1 * torch.randn(weight.shape[0], 1, generator=draw))
                adapter[f"{path}.dora_scale"] = lengths.float()
                moved = weight.double() + delta
                delta = (moved * adapter[f"{path}.dora_scale"].double() / moved.norm(dim=1, keepdim=True) - weight.double()) if name else delta
        change[key] = delta.double()
    return adapter, change


def motion_module(path: Path) -> None:
    """An AnimateDiff motion module of SD 1.5's layout (version 1: no middle block, 24 frames) with random weights, in half precision."""
    draw = torch.Generator().manual_seed(5)
    state: dict[str, torch.Tensor] = {}

    def put(name: str, *shape: int, one: bool = False) -> None:
        value = torch.ones(shape) if one else torch.randn(shape, generator=draw) * (0.1 if len(shape) == 1 else shape[-1] ** -0.5)
        state[name] = value.half()

    for side, levels, count in (("down_blocks", (320, 640, 1280, 1280), 2), ("up_blocks", (1280, 1280, 640, 320), 3)):
        for level, width in enumerate(levels):
            for module in range(count):
                root = f"{side}.{level}.motion_modules.{module}.temporal_transformer."
                for part in ("proj_in", "proj_out"):
                    put(f"{root}{part}.weight", width, width)
                    put(f"{root}{part}.bias", width)
                for part in ("norm", "transformer_blocks.0.norms.0", "transformer_blocks.0.ff_norm"):
                    put(f"{root}{part}.weight", width, one=True)
                    put(f"{root}{part}.bias", width)
                block = f"{root}transformer_blocks.0."
                for part in ("to_q", "to_k", "to_v", "to_out.0"):
                    put(f"{block}attention_blocks.0.{part}.weight", width, width)
                put(f"{block}attention_blocks.0.to_out.0.bias", width)
                put(f"{block}attention_blocks.0.pos_encoder.pe", 1, 24, width)
                put(f"{block}ff.net.0.proj.weight", 8 * width, width)
                put(f"{block}ff.net.0.proj.bias", 8 * width)
                put(f"{block}ff.net.2.weight", width, 4 * width)
                put(f"{block}ff.net.2.bias", width)
    save_file(state, path)


def quantise(folder: Path, kind: str) -> None:
    """tiny-KIND.gguf for the UNet loader, its linear weights in `kind`; and the checkpoint of what they amount to in float32."""
    import gguf  # pyright: ignore[reportMissingImports]: the bench of the GGUF pack brings it

    state = load_file(folder / "checkpoints" / "tiny.safetensors")
    writer = gguf.GGUFWriter(folder / "diffusion_models" / f"tiny-{kind}.gguf", "sd1")
    quantisation = gguf.GGMLQuantizationType[kind]
    for key, value in state.items():
        if not key.startswith(PREFIX):
            continue
        array = value.numpy()
        if value.ndim == 2 and value.shape[1] % 32 == 0 and kind != "F16":
            packed = gguf.quants.quantize(array, quantisation)
            state[key] = torch.from_numpy(gguf.quants.dequantize(packed, quantisation).copy())
            writer.add_tensor(key.removeprefix(PREFIX), packed, raw_dtype=quantisation)
        elif value.ndim == 1:
            writer.add_tensor(key.removeprefix(PREFIX), array)
        else:
            state[key] = value.half().float()
            writer.add_tensor(key.removeprefix(PREFIX), value.half().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(state, folder / "checkpoints" / f"gguf-{kind}.safetensors")


def ip_adapter(folder: Path) -> str:
    """An IP-Adapter file of SD 1.5's layout with random weights; the narrow model has all its layers 320 wide."""
    path = folder / "ipadapter" / "tiny-ip-adapter.safetensors"
    if not path.exists():
        draw = torch.Generator().manual_seed(6)
        state = {"image_proj.proj.weight": torch.randn(4 * 768, 1024, generator=draw) / 32, "image_proj.proj.bias": torch.zeros(4 * 768)}
        state |= {"image_proj.norm.weight": torch.ones(768), "image_proj.norm.bias": torch.zeros(768)}
        for number in range(1, 32, 2):
            for part in "kv":
                state[f"ip_adapter.{number}.to_{part}_ip.weight"] = torch.randn(320, 768, generator=draw) / 28
        save_file(state, path)
    return path.name


def image_embeddings(folder: Path) -> None:
    """What IPAdapter's own encoder node would save, in the server's input folder."""
    draw = torch.Generator().manual_seed(8)
    for name in ("positive", "negative"):
        torch.save(torch.randn(1, 1024, generator=draw), folder / f"{name}.ipadpt")


def control_net(folder: Path) -> None:
    path = folder / "controlnet" / "control.safetensors"
    if path.exists():
        return
    import comfy.ops
    import random_base
    from comfy.cldm.cldm import ControlNet
    from kindred_testing.host import start_host

    start_host()
    draw = torch.Generator().manual_seed(9)
    settings = {key: value for key, value in random_base.UNET.items() if key not in ("out_channels", "transformer_depth_output")}
    with torch.no_grad():
        module = ControlNet(**settings, hint_channels=3, operations=comfy.ops.disable_weight_init)
        state = {name: random_base._initial(name, value, draw).contiguous() for name, value in module.named_parameters()}
    save_file(state, path)
