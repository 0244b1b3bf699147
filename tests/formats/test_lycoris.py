"""LyCORIS' own modules with random weights, saved as they save themselves: the host must merge what they merge, or Load Concept must say that it cannot."""

import copy
import importlib

import pytest
import torch
from kindred_testing import guidance_families, pack
from kindred_testing.loras import patched_weights

lycoris = pytest.importorskip("lycoris")

EXACT = {
    "LoCon": ("LoConModule", {}),
    "LoCon, tucker": ("LoConModule", {"use_tucker": True}),
    "LoCon, rsLoRA and scalar": ("LoConModule", {"rs_lora": True, "use_scalar": True}),
    "DoRA over outputs": ("LoConModule", {"weight_decompose": True}),
    "DoRA over inputs": ("LoConModule", {"weight_decompose": True, "wd_on_out": False}),
    "LoHa": ("LohaModule", {}),
    "LoHa, tucker": ("LohaModule", {"use_tucker": True}),
    "LoHa, DoRA": ("LohaModule", {"weight_decompose": True}),
    "LoKr": ("LokrModule", {"factor": 4}),
    "LoKr, both factored": ("LokrModule", {"factor": 16, "decompose_both": True, "lora_dim": 2}),
    "LoKr, full": ("LokrModule", {"factor": 8, "full_matrix": True}),
    "LoKr, tucker": ("LokrModule", {"factor": 4, "use_tucker": True}),
    "LoKr, DoRA": ("LokrModule", {"factor": 4, "weight_decompose": True}),
    "GLoRA": ("GLoRAModule", {}),
    "full": ("FullModule", {}),
    "OFT": ("DiagOFTModule", {"constraint": 0.0}),
    "OFT, constrained": ("DiagOFTModule", {"constraint": 0.001}),
    "BOFT": ("ButterflyOFTModule", {"constraint": 0.0, "lora_dim": 16}),
    "BOFT, constrained": ("ButterflyOFTModule", {"constraint": 0.001, "lora_dim": 16}),
    "norm": ("NormModule", {}),
}
REFUSED = {
    "IA3": ("IA3Module", {}, r"\(IA\)\^3 of LyCORIS"),
    "OFT, rescaled": ("DiagOFTModule", {"rescaled": True}, "rescaled OFT"),
    "BOFT, rescaled": ("ButterflyOFTModule", {"rescaled": True, "lora_dim": 16}, "rescaled OFT"),
    "T-LoRA": ("TLoraModule", {}, "T-LoRA"),
}


@pytest.fixture(scope="module")
def model():
    return guidance_families.random_model("SD15")


def made(model, path, kind, options):
    """(the state as the module saves it, what the layer computes with it: input -> output, the layer without it)"""
    source = model.model.diffusion_model.get_submodule(path)
    layer, bias = source.weight, source.bias is not None
    if isinstance(source, torch.nn.GroupNorm):
        org = torch.nn.GroupNorm(source.num_groups, source.num_channels, source.eps)
    elif layer.ndim == 2:
        org = torch.nn.Linear(layer.shape[1], layer.shape[0], bias)
    else:
        org = torch.nn.Conv2d(layer.shape[1], layer.shape[0], layer.shape[2:], padding=layer.shape[2] // 2, bias=bias)
    org.load_state_dict({key: value.detach().clone() for key, value in source.state_dict().items()})
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    module = getattr(importlib.import_module(f"lycoris.modules.{MODULES[kind]}"), kind)(
        **{"lora_name": "x", "org_module": org, "multiplier": 1.0, "lora_dim": 4, "alpha": 2.0, **options}
    )
    module.eval().apply_to()
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "dora_scale" in name or name == "rescale":
                value.mul_(1 + 0.2 * torch.rand(value.shape, generator=generator))
            elif name == "scalar":
                value.fill_(0.7)
            elif not name.startswith("org"):
                value.add_(torch.randn(value.shape, generator=generator) * 0.05)
        return {key: value.detach().clone() for key, value in module.state_dict().items()}, org


MODULES = {
    "LoConModule": "locon",
    "LohaModule": "loha",
    "LokrModule": "lokr",
    "GLoRAModule": "glora",
    "FullModule": "full",
    "DiagOFTModule": "diag_oft",
    "ButterflyOFTModule": "boft",
    "NormModule": "norms",
    "IA3Module": "ia3",
    "TLoraModule": "tlora",
}
LAYERS = {
    "linear": "input_blocks.1.1.transformer_blocks.0.attn2.to_k",
    "convolution": "middle_block.0.in_layers.2",
    "1x1": "output_blocks.1.1.proj_in",
    "norm": "middle_block.0.in_layers.0",
}


def load(model, path, state):
    layouts, names = pack("formats.layouts"), pack("host.layer_names").layer_names(model)
    word = names.kohya[f"diffusion_model.{path}"]
    with torch.inference_mode():
        return pack("host.lora").load_lora(model, None, layouts.to_core({f"{word}.{key}": value for key, value in state.items()}, {}, names))


CASES = [(kind, shape) for kind in EXACT for shape in LAYERS if (kind == "norm") == (shape == "norm")]


@pytest.mark.parametrize("kind, shape", CASES)
def test_the_host_computes_what_lycoris_computes(model, kind, shape):
    path = LAYERS[shape]
    state, trained = made(model, path, *EXACT[kind])
    applied = load(model, path, state)
    assert not applied.notes
    weights, source = patched_weights(applied.model), model.model.diffusion_model.get_submodule(path)
    plain = copy.deepcopy(source).float()
    size = {"linear": (7, 768), "norm": (320, 4, 4), "convolution": (320, 6, 6), "1x1": (320, 6, 6)}[shape]
    x = torch.randn(2, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before = plain(x)
        for name, value in plain.named_parameters():
            value.copy_(weights.get(f"diffusion_model.{path}.{name}", value))
        got, want = plain(x), trained(x)
    assert (got - want).norm() < 1e-5 * want.norm()
    assert (want - before).norm() > 1e-3 * want.norm()


@pytest.mark.parametrize("kind", REFUSED)
def test_what_the_host_cannot_apply_is_named(model, kind):
    *chosen, name = REFUSED[kind]
    path = LAYERS["convolution"]
    with pytest.raises(ValueError, match=name):
        load(model, path, made(model, path, *chosen)[0])
