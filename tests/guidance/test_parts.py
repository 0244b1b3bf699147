"""The pieces of a difference, taken off a weight and off an output: both are the same, for every kind of piece and layer."""

import copy

import pytest
import torch
from kindred_testing import guidance_models as g
from kindred_testing import pack

SCALE = -0.7
IN, OUT = 24, 32


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def layer_of(kind: str, bias: bool = True):
    """A layer of the host's own class with random weights; the convolution strides."""
    ops = g.comfy("comfy.ops").disable_weight_init
    layer = ops.Linear(IN, OUT, bias=bias) if kind == "linear" else ops.Conv2d(IN, OUT, 3 if kind == "convolution" else 1, stride=2, padding=1, bias=bias)
    for value in layer.parameters():
        value.data = draw(*value.shape)
    return layer.requires_grad_(False)


def terms_of(name: str, shape) -> list:
    a, flat, kernel = pack("host.adapters"), torch.Size(shape[1:]).numel(), shape[2:]
    return {
        "low rank": [(0.5, a.LowRank(draw(OUT, 3), draw(3, *shape[1:])))],
        "two low ranks": [(0.5, a.LowRank(draw(OUT, 3), draw(3, *shape[1:]))), (-2.0, a.LowRank(draw(OUT, 2), draw(2, *shape[1:])))],
        "slice": [(1.0, a.LowRank(draw(8, 3), draw(3, *shape[1:]), (16, 8)))],
        "kronecker": [(0.5, a.Kronecker(draw(4, 8), draw(8, 3, *kernel)))],
        "hadamard": [(0.5, a.Hadamard(draw(OUT, 2), draw(2, flat), draw(OUT, 3), draw(3, flat)))],
        "scale": [(1.0, a.Scale(draw(OUT))), (1.0, a.LowRank(draw(OUT, 3), draw(3, *shape[1:])))],
        "turn": [(1.0, a.Rotation(draw(8, 4, 4)))],
    }[name]


def difference(terms, weight):
    """A, written out in float64."""
    out, weight = torch.zeros_like(weight, dtype=torch.float64), weight.double()
    flat = out.view(len(out), -1)
    for factor, term in terms:
        values = {key: value.double() for key, value in vars(term).items() if torch.is_tensor(value)}
        if "up" in values:
            (flat if term.rows is None else flat.narrow(0, *term.rows)).add_(values["up"] @ values["down"].flatten(1), alpha=factor)
        elif "w1" in values:
            w1 = values["w1"].view(*values["w1"].shape, *[1] * (weight.ndim - 2))
            out += factor * torch.kron(w1, values["w2"])
        elif "a1" in values:
            flat += factor * (values["a1"] @ values["b1"]) * (values["a2"] @ values["b2"])
        elif "v" in values:
            flat += factor * values["v"][:, None] * weight.flatten(1)
        else:
            flat += factor * torch.block_diag(*values["blocks"]) @ weight.flatten(1)
    return out


LAYERS, PIECES = ("linear", "convolution", "1x1 convolution"), ("low rank", "two low ranks", "kronecker", "hadamard", "scale", "turn")
CASES = [(name, kind) for name in PIECES for kind in LAYERS] + [("slice", "linear")]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name, kind", CASES)
def test_both_ways_give_the_layer_with_the_weak_weight(monkeypatch, name, kind, bias):
    """Rows 1 and 2 of 4 are weak; the others are the tuned layer's, and no weight is changed."""
    layers, rows = pack("guidance.layers"), pack("guidance.layers").Rows(1.0 + SCALE)
    layer = layer_of(kind, bias)
    before = copy.deepcopy(layer.state_dict())
    terms = terms_of(name, layer.weight.shape)
    parts = pack("guidance.parts").factored(layer, terms, layer.weight.shape, {"device": torch.device("cpu"), "dtype": torch.float32})
    x = draw(4, 5, IN) if kind == "linear" else draw(4, IN, 6, 6)
    weak = copy.deepcopy(layer).double()
    weak.weight.data += SCALE * difference(terms, layer.weight)
    added = draw(OUT, seed=1) if bias else None
    if bias:
        weak.bias.data += SCALE * added.double()
    strong = copy.deepcopy(layer).double()
    rows.both_sides(((1, 3),), 4)
    for pays in (True, False):
        monkeypatch.setattr(layers, "pays", lambda *_, pays=pays: pays)
        with torch.inference_mode():
            y = layers.Correction(rows, layer.forward, layer, parts, added, layer.bias)(x)
            assert g.error(y[1:3], weak(x[1:3].double())) < 1e-6
            assert g.error(y[[0, 3]], strong(x[[0, 3]].double())) < 1e-6
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_the_way_follows_the_size(pair):
    """A large image: the weight is made anew. A prompt's few tokens, a layer that casts or is patched, a node's own forward: never."""
    pays, host = pack("guidance.parts").pays, pack("host.patcher")
    layer = layer_of("linear")
    parts = pack("guidance.parts").factored(layer, terms_of("low rank", layer.weight.shape), layer.weight.shape, {"device": "cpu", "dtype": torch.float32})
    assert pays(parts, layer, draw(2, 4096, IN), 1)
    assert not pays(parts, layer, draw(2, 4, IN), 1)
    x = draw(2, 64, IN)
    assert host.is_direct(layer, layer.forward, x)
    assert not host.is_direct(layer, layer.forward, x.half())
    assert not host.is_direct(layer, lambda x: x, x)
    for name, value in (("weight_function", [lambda weight: weight]), ("bias_lowvram_function", lambda bias: bias), ("_v", object())):
        other = copy.copy(layer)
        setattr(other, name, value)
        assert not host.is_direct(other, other.forward, x), name  # low VRAM, offloading, DynamicVRAM


def test_gradients_pass(pair):
    """Nodes that guide by gradients draw with autograd on: nothing is written into what it needs."""
    layers, rows = pack("guidance.layers"), pack("guidance.layers").Rows(0.3)
    layer = layer_of("linear")
    place = {"device": torch.device("cpu"), "dtype": torch.float32}
    rows.both_sides(((1, 2),), 2)
    for name in ("low rank", "kronecker", "hadamard", "scale", "turn"):
        terms = terms_of(name, layer.weight.shape)
        x = draw(2, 50, IN).requires_grad_()
        layers.Correction(rows, layer.forward, layer, pack("guidance.parts").factored(layer, terms, layer.weight.shape, place), None, layer.bias)(
            x
        ).sum().backward()
        weak = layer.weight.double() - 0.7 * difference(terms, layer.weight)
        assert g.error(x.grad, torch.stack([layer.weight.double().sum(0), weak.sum(0)])[:, None].expand(2, 50, IN)) < 1e-5
