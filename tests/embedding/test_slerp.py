"""TEA's rotation against the papers' formula in float64, and at the places where the formula itself breaks down."""

import math

import pytest
import torch
from kindred_testing import pack

DEGREES = [0.01, 1, 30, 60, 90, 119, 121, 150, 170, 179, 179.9]


def formula(v, c, alpha, beta, norm):
    """The paper's equations 1 and 2, as written, in float64."""
    v, c = v.double(), c.double()
    length_v, length_c = v.norm(dim=-1, keepdim=True), c.norm(dim=-1, keepdim=True)
    n = beta * length_c if norm == "class" else (1 - beta) * length_v + beta * length_c
    a, b = n * v / length_v, n * c / length_c
    t = torch.acos(((a * b).sum(-1, keepdim=True) / n**2).clamp(-1, 1))
    return torch.sin((1 - alpha) * t) / torch.sin(t) * a + torch.sin(alpha * t) / torch.sin(t) * b


def pair(degrees, width=768, count=9, lengths=(3.7, 0.9), seed=0):
    """Vectors [count, width] at a given angle and of given lengths, float32."""
    generator = torch.Generator().manual_seed(seed)
    u, w = (torch.randn(count, width, generator=generator, dtype=torch.float64) for _ in range(2))
    u = u / u.norm(dim=-1, keepdim=True)
    w = w - (w * u).sum(-1, keepdim=True) * u
    w = w / w.norm(dim=-1, keepdim=True)
    t = math.radians(degrees)
    return (lengths[0] * u).float(), (lengths[1] * (math.cos(t) * u + math.sin(t) * w)).float()


@pytest.mark.parametrize("norm", ["midpoint", "class"])
@pytest.mark.parametrize("degrees", DEGREES)
def test_equals_the_formula_in_float64(degrees, norm):
    slerp = pack("embedding.slerp")
    for width in (768, 1280, 4096):
        v, c = pair(degrees, width)
        for alpha in (0.0, 0.1, 0.2, 0.5, 0.9, 1.0):
            for beta in (0.3, 0.5, 1.0):
                want = formula(v, c, alpha, beta, norm)
                got = slerp.adjust(v, c, alpha, beta, norm)
                error = (got.double() - want).norm(dim=-1) / want.norm(dim=-1)
                assert error.max() < 1e-6, (width, alpha, beta, error.max())


def test_plain_slerp_keeps_the_sphere_and_takes_any_leading_shape():
    slerp = pack("embedding.slerp").slerp
    a, b = torch.randn(2, 3, 5, 64).double(), torch.randn(5, 64).double()
    a, b = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    r = torch.rand(2, 3, 5, 1)
    out = slerp(a, b, r)
    assert out.shape == (2, 3, 5, 64)
    assert torch.allclose(out.norm(dim=-1), torch.ones(2, 3, 5, dtype=torch.float64))
    t, part = (torch.acos((a * x).sum(-1)) for x in (b.expand_as(a), out))
    assert torch.allclose(part, r.squeeze(-1).double() * t)
    assert torch.allclose(slerp(a, b, 0.0), a) and torch.allclose(slerp(a, b, 1.0), b.expand_as(a))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_alpha_0_with_the_norm_kept_is_bit_for_bit(dtype):
    adjust = pack("embedding.slerp").adjust
    v, c = torch.randn(2, 77, 768).to(dtype), torch.randn(2, 77, 768).to(dtype)
    assert torch.equal(adjust(v, c, alpha=0.0, beta=0.0), v)
    assert adjust(v, c).dtype == dtype
    rows = torch.tensor([0.0, 0.3]).repeat(77, 1).T.reshape(2, 77, 1)
    mixed = adjust(v, c, alpha=rows, beta=0.0)
    assert torch.equal(mixed[0], v[0]) and not torch.equal(mixed[1], v[1])


def test_one_direction_and_opposite_directions():
    slerp = pack("embedding.slerp")
    v, _ = pair(30)
    same = slerp.adjust(v, 2 * v, 0.5, 0.5)
    assert torch.allclose(same, 1.5 * v, rtol=1e-6, atol=0)
    for opposite in (-v, -3 * v):
        half = slerp.slerp(v / v.norm(dim=-1, keepdim=True), opposite / opposite.norm(dim=-1, keepdim=True), 0.5)
        assert torch.isfinite(half).all()
        assert torch.allclose(half.norm(dim=-1), torch.ones(9), atol=1e-6)
        assert (half * v).sum(-1).abs().max() < 1e-5  # a right angle: half of the way round
        axis = v.abs().argmin(-1)  # toward the coordinate axis in which v is smallest, as documented
        assert torch.equal(half.argmax(-1), axis)
    assert torch.equal(slerp.slerp(v, -v, 0.5), slerp.slerp(v, -v, 0.5))


def test_zero_vectors_stay_and_nothing_is_nan():
    adjust = pack("embedding.slerp").adjust
    v = torch.randn(4, 16)
    v[1] = 0
    c = torch.randn(4, 16)
    c[2] = 0
    out = adjust(v, c, 0.4, 0.5)
    assert torch.isfinite(out).all()
    assert torch.equal(out[1], v[1]) and torch.equal(out[2], v[2])
    tiny = adjust(torch.full((1, 8), 1e-30), torch.full((1, 8), -1e-30), 0.5, 0.5)
    assert torch.isfinite(tiny).all()


def test_lengths_beyond_the_class_are_in_the_papers_sweep():
    v, c = torch.randn(2, 4, 8)
    adjust = pack("embedding.slerp").adjust
    assert torch.allclose(adjust(v, c, 0.0, 2.5, "class").norm(dim=-1), 2.5 * c.norm(dim=-1))
    with pytest.raises(ValueError, match=r"from 0 to 1\. With norm 'class'"):
        adjust(v, c, 0.0, 1.5, "midpoint")


@pytest.mark.parametrize("name, value", [("alpha", -0.1), ("alpha", 1.1), ("beta", float("nan")), ("alpha", float("inf")), ("beta", "0.5"), ("alpha", True)])
def test_values_outside_their_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is"):
        pack("embedding.slerp").adjust(torch.ones(1, 4), torch.ones(1, 4), **{name: value})


def test_widths_and_norms_that_do_not_exist():
    adjust = pack("embedding.slerp").adjust
    with pytest.raises(ValueError, match="768 and 1280"):
        adjust(torch.ones(1, 768), torch.ones(1, 1280))
    with pytest.raises(ValueError, match="'median'"):
        adjust(torch.ones(1, 4), torch.ones(1, 4), norm="median")
