"""What is learned in weights: one suite over all kinds, on real networks of the host, against the host's own way to load the file."""

import logging
import re

import pytest
import torch
import torch.utils.checkpoint
from kindred_testing import guidance_families, pack, text_models
from kindred_testing.guidance_models import comfy, node
from kindred_testing.host import BASE
from safetensors.torch import save_file

KINDS = ("K/V", *pack("training.adapters.kinds").KINDS, "LoHa of high rank")
EVERYTHING = "attention + feed-forward + convolutions"


@pytest.fixture(scope="module")
def models():
    return {"SD 1.5": guidance_families.random_model("SD15", "narrow"), "SD 3": guidance_families.random_model("SD3")}


@pytest.fixture
def training():
    with pack("host.training").training_mode():
        yield


def inputs(family: str, dtype=torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    channels, positions, width = {"SD 1.5": (4, 77, 768), "SD 3": (16, 20, 4096)}[family]
    given = {"x": torch.randn(2, channels, 8, 8, generator=generator), "context": torch.randn(2, positions, width, generator=generator)}
    if family == "SD 3":
        given["y"] = torch.randn(2, 2048, generator=generator)
    return {"timesteps": torch.tensor([100.0, 700.0]), **{name: value.to(dtype) for name, value in given.items()}}


def forward(network, family: str, dtype=torch.float32) -> torch.Tensor:
    return network(**inputs(family, dtype), transformer_options={})


def attach(network, kind: str, targets: str = EVERYTHING, seed: int = 5):
    """The adapter of a kind at a rank that is small beside the layers (or, for LoHa, is not)."""
    if kind == "K/V":
        return pack("training.adapters.kv").WeightDifference(network, re.compile(r"attn2\.to_[kv]$|attn\.qkv$"))
    rank = {"LoHa": 3, "LoHa of high rank": 20, "LoKr": 8, "OFT": 8}.get(kind, 4)
    return pack("training.adapters.side").attach_adapter(network, kind.split()[0], rank, 2.0, targets, seed)


def learn(network, adapter, family: str, steps: int = 2, dtype=torch.float32, rate: float = 0.01) -> list[float]:
    optimizer = torch.optim.AdamW(adapter.parameters.values(), lr=rate)
    losses = []
    for _ in range(steps):
        loss = (forward(network, family, dtype).float() - 1).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", ["SD 1.5", "SD 3"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_host_gives_the_trained_network(models, training, kind, family, caplog):
    """Two steps move every parameter; with `lora()` the host computes what was trained; without the adapter all is as before."""
    model, host = models[family], pack("host.training")
    comfy("comfy.model_management").load_models_gpu([model])
    network = host.training_copy(model.model.diffusion_model)
    with torch.no_grad():
        base = forward(network, family)
    adapter = attach(network, kind)
    with torch.no_grad():
        assert torch.equal(forward(network, family), base), "an adapter starts as nothing"
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in adapter.parameters.values())
    start = {name: parameter.detach().clone() for name, parameter in adapter.parameters.items()}
    losses = learn(network, adapter, family, rate=1e-3 if kind in ("K/V", "LoHa of high rank") else 0.01)
    assert losses[1] < losses[0]
    assert [name for name, parameter in adapter.parameters.items() if torch.equal(parameter, start[name])] == []
    with torch.no_grad():
        trained = forward(network, family)
        with adapter.disabled():
            adapter.lora()  # itself disables the K/V for a moment
            assert torch.equal(forward(network, family), base)
        assert torch.equal(forward(network, family), trained)
    assert error(trained, base) > 1e-3
    assert not any(parameter.grad is not None for name, parameter in network.named_parameters() if name.removesuffix(".weight") not in adapter.parameters)

    with caplog.at_level(logging.WARNING):
        tuned, _ = pack("host.lora").apply_lora(model, None, adapter.lora())
    assert "not loaded" not in caplog.text and "ERROR" not in caplog.text
    with torch.inference_mode():
        comfy("comfy.model_management").load_models_gpu([tuned])
        loaded = forward(tuned.model.diffusion_model, family)
        comfy("comfy.model_management").load_models_gpu([model])
    assert error(loaded, trained) < 1e-5

    state = adapter.lora()
    adapter.detach()
    with torch.no_grad():
        assert torch.equal(forward(network, family), base)
    assert all(torch.equal(value, state[name]) for name, value in adapter.lora().items())


def starts_at_random(network, kind: str, start: dict[str, torch.Tensor]) -> bool:
    """Does the kind draw numbers, and do its parameters hold them? OFT draws a seed and starts at zero; SVDiff draws nothing."""
    generator = torch.Generator().manual_seed(5)
    before, layer = generator.get_state(), next(iter(pack("training.adapters.layers").target_layers(network, "cross-attention").values()))
    pack("training.adapters.kinds").side_class(kind.split()[0])(layer, 4, 2.0, generator, layer.weight.device)
    drawn = not torch.equal(generator.get_state(), before)
    return drawn and any(value.min() != value.max() for value in start.values())


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_start_is_a_function_of_the_seed(models, training, kind):
    network = pack("host.training").training_copy(models["SD 1.5"].model.diffusion_model)
    states = []
    for seed in (5, 5, 6):
        before = torch.get_rng_state()
        adapter = attach(network, kind, "cross-attention", seed)
        assert torch.equal(torch.get_rng_state(), before), "the global random state was touched"
        states.append({name: value.detach().clone() for name, value in adapter.parameters.items()})
        adapter.detach()
        torch.rand(1)
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    same = all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    assert same != starts_at_random(network, kind, states[0])


def test_lora_gradients_equal_those_of_whole_weights(models, training):
    """dL/dB = s G A^T and dL/dA = s B^T G, G being the gradient of the whole weight W + s B A, convolutions included."""
    network = pack("host.training").training_copy(models["SD 1.5"].model.diffusion_model)
    adapter = attach(network, "LoRA")
    learn(network, adapter, "SD 1.5")
    forward(network, "SD 1.5").square().mean().backward()
    adapter.detach()
    layers = pack("training.adapters.layers").target_layers(network, EVERYTHING)
    whole = pack("training.adapters.kv").WeightDifference(network, re.compile("|".join(rf"\.{re.escape(name)}$" for name in layers)))
    assert set(whole.parameters) == set(layers)
    halves = {name: (adapter.parameters[f"{name}.lora_up.weight"], adapter.parameters[f"{name}.lora_down.weight"]) for name in layers}
    with torch.no_grad():
        for name, (up, down) in halves.items():
            whole.parameters[name] += 0.5 * (up.flatten(1) @ down.flatten(1)).view_as(whole.parameters[name])
    forward(network, "SD 1.5").square().mean().backward()
    for name, (up, down) in halves.items():
        gradient = whole.parameters[name].grad.flatten(1).double()
        assert error(up.grad.flatten(1), 0.5 * gradient @ down.flatten(1).double().T) < 1e-4, name
        assert error(down.grad.flatten(1), 0.5 * up.flatten(1).double().T @ gradient) < 1e-4, name


@pytest.mark.parametrize("kind", ["K/V", "LoRA", "DoRA"])
def test_gradient_checkpointing_changes_nothing(models, training, kind):
    network = pack("host.training").training_copy(models["SD 1.5"].model.diffusion_model)
    adapter = attach(network, kind, "attention")
    learn(network, adapter, "SD 1.5", steps=1)
    gradients = []
    for again in (False, True):
        output = torch.utils.checkpoint.checkpoint(forward, network, "SD 1.5", use_reentrant=False) if again else forward(network, "SD 1.5")
        output.square().mean().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in adapter.parameters.items()})
        for parameter in adapter.parameters.values():
            parameter.grad = None
    assert all(gradient.abs().max() > 0 and torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


@pytest.mark.parametrize(
    "kind, storage",
    [(kind, torch.float8_e4m3fn) for kind in KINDS] + [(kind, storage) for kind in ("K/V", "LoRA", "OFT") for storage in (torch.bfloat16, torch.float16)],
)
def test_bases_in_few_bits_train_in_float32(models, training, kind, storage):
    """Cast-per-call layers (fp16, bf16, fp8, low VRAM), activations in bf16, and under autocast: small steps are not lost."""
    network = pack("host.training").training_copy(models["SD 1.5"].model.diffusion_model)
    for layer in network.modules():
        if getattr(layer, "weight", None) is not None:
            layer.comfy_cast_weights = True
            layer.weight.data = layer.weight.data.to(storage if layer.weight.ndim == 2 else torch.bfloat16)
    autocast = storage is torch.bfloat16
    adapter = attach(network, kind, "attention + feed-forward")
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        dtype = torch.float32 if autocast else torch.bfloat16
        start = {name: parameter.detach().clone() for name, parameter in adapter.parameters.items()}
        losses = learn(network, adapter, "SD 1.5", steps=3, dtype=dtype, rate=1e-5)
    assert all(torch.isfinite(torch.tensor(losses)))
    for name, parameter in adapter.parameters.items():
        assert 0 < (parameter - start[name]).abs().max() < 1e-3, name
    assert all(value.dtype == torch.float32 for value in adapter.lora().values())


def test_a_text_encoder_is_trained_and_loads_through_core(training, caplog):
    """LoRA on both encoders of SDXL; the class anchor is taken before; core's LoraLoader node reads network and text from one file."""
    model, clip, host = guidance_families.random_model("SDXL"), text_models.sdxl(), pack("host.training")
    text = pack("host.trainable_text").TrainableText(clip)
    with torch.no_grad():
        anchor = text.encode(clip, "a photo of a dog")[0]
    adapter = pack("training.adapters.side").attach_adapter(
        text.model, "LoRA", 4, 4.0, "attention + feed-forward", 1, prefix="text_encoders.", patterns=pack("host.families").TEXT_LAYERS
    )
    optimizer = torch.optim.AdamW(adapter.parameters.values(), lr=0.02)
    for _ in range(2):
        conditioning, pooled = text.encode(clip, "a photo of a dog")[:2]
        (conditioning.square().mean() + pooled.square().mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        trained, pooled = text.encode(clip, "a photo of a dog")[:2]
        with adapter.disabled():
            assert torch.equal(text.encode(clip, "a photo of a dog")[0], anchor)
    assert error(trained, anchor) > 1e-3
    assert {name.split(".")[0] for name in adapter.parameters} == {"clip_l", "clip_g"}

    network = host.training_copy(model.model.diffusion_model)
    other = attach(network, "DoRA", "attention")
    path = BASE / "models" / "loras" / "both.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(adapter.lora() | other.lora(), path)
    with caplog.at_level(logging.WARNING):
        tuned, tuned_clip = node("LoraLoader", model=model, clip=clip, lora_name=path.name, strength_model=1.0, strength_clip=1.0)[:2]
    assert "not loaded" not in caplog.text
    assert len(tuned.patches) == len(other.parameters) // 3 and len(tuned_clip.patcher.patches) == len(adapter.parameters) // 2
    with torch.inference_mode():
        loaded, loaded_pooled = tuned_clip.encode_from_tokens(clip.tokenize("a photo of a dog"), return_pooled=True)
    assert error(loaded, trained) < 1e-5 and error(loaded_pooled, pooled) < 1e-5


NAMES = {  # every family whose layers are known: part of the network -> layers, of a network of the host made without memory
    "SD 1.5": {"cross-attention": 28, "attention": 56, "feed-forward": 14, "convolutions": 37},
    "SD 3": {"attention": 7, "feed-forward": 6},
    "Flux": {"attention": 6, "feed-forward": 4},
    "AuraFlow": {"attention": 12, "feed-forward": 9},
    "Lumina 2": {"attention": 6, "feed-forward": 9},
}


def network_of(family: str, models):
    if family in models:
        return models[family].model.diffusion_model
    common = {"dtype": torch.float32, "device": torch.device("meta"), "operations": comfy("comfy.ops").disable_weight_init}
    if family == "Flux":
        sizes = {"in_channels": 16, "out_channels": 16, "vec_in_dim": 64, "context_in_dim": 64, "hidden_size": 128, "mlp_ratio": 4.0, "num_heads": 2}
        shape = {"depth": 1, "depth_single_blocks": 1, "axes_dim": [16, 24, 24], "theta": 10000, "patch_size": 2, "qkv_bias": True, "guidance_embed": False}
        return comfy("comfy.ldm.flux.model").Flux(image_model="flux", txt_ids_dims=[], **sizes, **shape, **common)
    if family == "AuraFlow":
        return comfy("comfy.ldm.aura.mmdit").MMDiT(n_double_layers=1, n_layers=2, dim=128, n_heads=2, cond_seq_dim=64, **common)
    sizes = {
        "dim": 128,
        "n_layers": 1,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "axes_dims": [16, 24, 24],
        "axes_lens": [30, 51, 51],
        "cap_feat_dim": 64,
    }
    return comfy("comfy.ldm.lumina.model").NextDiT(**sizes, **common)


@pytest.mark.parametrize("family", NAMES)
def test_targets_are_found_by_the_hosts_names(models, family, caplog):
    layers, network = pack("training.adapters.layers"), network_of(family, models)
    wanted = NAMES[family]
    attention, both = layers.target_layers(network, "attention"), layers.target_layers(network, "attention + feed-forward")
    assert (len(attention), len(both) - len(attention)) == (wanted["attention"], wanted["feed-forward"])
    assert not caplog.text
    everything = layers.target_layers(network, EVERYTHING)
    assert len(everything) - len(both) == wanted.get("convolutions", 0)
    assert ("no convolutions layers" in caplog.text) == ("convolutions" not in wanted)
    if "cross-attention" in wanted:
        assert len(layers.target_layers(network, "cross-attention")) == wanted["cross-attention"]
    else:
        with pytest.raises(ValueError, match="no layer that 'cross-attention' means"):
            layers.target_layers(network, "cross-attention")


def test_what_cannot_be_is_named(models):
    attach, network = pack("training.adapters.side").attach_adapter, models["SD 1.5"].model.diffusion_model
    with pytest.raises(ValueError, match=r"'GLoRA'; expected one of 'LoRA', 'DoRA'"):
        attach(network, "GLoRA", 4, 4.0)
    with pytest.raises(ValueError, match="rank is 0"):
        attach(network, "LoRA", 0, 4.0)
    with pytest.raises(ValueError, match=r"targets is 'all'; expected one of 'cross-attention'"):
        attach(network, "LoRA", 4, 4.0, "all")
