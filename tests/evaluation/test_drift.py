"""Semantic Drift: the metrics against brute force, the measurement on real encoders, the node in the server."""

import io
import math

import pytest
import torch
from kindred_testing import pack, text_models
from PIL import Image


def points(count, width, seed=0, scale=1.0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def covariance(x):
    """Ledoit and Wolf's estimate with all its matrices written out."""
    x = x - x.mean(0)
    n, d = x.shape
    s, identity = x.T @ x / n, torch.eye(d, dtype=x.dtype)
    m = torch.trace(s) / d
    d2 = ((s - m * identity) ** 2).sum() / d
    b2 = sum(((torch.outer(row, row) - s) ** 2).sum() / d for row in x) / n**2
    share = min(b2, d2) / d2
    return share * m * identity + (1 - share) * s


@pytest.mark.parametrize("count, width", [(12, 5), (8, 64), (40, 40)])
def test_the_metrics_are_their_definitions(count, width):
    drift = pack("evaluation.drift")
    a, b = points(count, width, 1) + 0.3, points(count, width, 2)
    got, t = drift.inter(a, b, temperature=0.2), 0.2
    assert got.l2 == pytest.approx(sum((x - y).norm().item() for x in a for y in b) / count**2)
    assert got.hausdorff == pytest.approx(max(min((x - y).norm().item() for y in b) for x in a))
    inverse, mean = torch.linalg.inv(covariance(b)), b.mean(0)
    assert got.mahalanobis == pytest.approx(sum(((x - mean) @ inverse @ (x - mean)).sqrt().item() for x in a) / count, rel=1e-6)

    def share(x, others):
        cosines = torch.stack([torch.dot(x, y) / x.norm() / y.norm() for y in others])
        return torch.exp(cosines / t) / torch.exp(cosines / t).sum()

    want = sum((share(x, b) * (share(x, b) / share(y, b)).log()).sum().item() for x, y in zip(a, b, strict=True)) / count
    assert got.kl == pytest.approx(want)
    within = drift.intra(a, temperature=0.2)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    assert within.l2 == pytest.approx(sum((a[i] - a[j]).norm().item() for i, j in pairs) / len(pairs))
    assert within.hausdorff == pytest.approx(max(min((a[i] - a[j]).norm().item() for j in range(count) if j != i) for i in range(count)))
    kl = sum((share(a[i], a) * (share(a[i], a) / share(a[j], a)).log()).sum().item() for i, j in pairs) / len(pairs)
    assert within.kl == pytest.approx(kl)


def test_far_fewer_prompts_than_dimensions_are_no_trouble():
    drift = pack("evaluation.drift")
    a, b = points(6, 2048, 1), points(6, 2048, 2)
    assert all(math.isfinite(value) for value in vars(drift.inter(a, b)).values())
    same = torch.ones(4, 16)
    assert drift.mahalanobis(same, same).tolist() == [0.0] * 4 and drift.mahalanobis(same + 1, same).isinf().all()
    assert drift.inter(a, a).kl == pytest.approx(0.0, abs=1e-12) and math.isnan(drift.inter(a, points(5, 2048)).kl)
    with pytest.raises(ValueError, match="temperature is 0"):
        drift.inter(a, b, temperature=0)
    assert drift.rank(2.5, torch.tensor([1.0, 2.0, 3.0])) == 3


def carrying(family, scale=0.05, word="dog", text="<v1>"):
    clip, generator = getattr(text_models, family)(), torch.Generator().manual_seed(4)
    vectors = {key: torch.randn(2, width, generator=generator) * scale for key, width in pack("host.text").embedding_widths(clip).items()}
    return pack("host.text").carry_tokens(clip, [pack("formats.token").LearnedToken(text, word, vectors)])


@pytest.mark.parametrize("family", ["sd15", "sdxl", "pixart"])
def test_adjusting_brings_the_token_nearer(family):
    with torch.inference_mode():
        prompts = "\n".join(pack("evaluation.phrases").CONTEXTS[::7])
        (found,) = pack("evaluation.measure").measure_all(carrying(family), "<v1>", prompts=prompts, alpha=0.5)
        plain, token, conditioning = found.states
        assert conditioning.inter.l2 < plain.inter.l2 and conditioning.kept > plain.kept and conditioning.distance < plain.distance
        assert all(vector.adjusted_cosine > vector.cosine for vector in found.vectors)
        assert {vector.encoder for vector in found.vectors} == set(pack("host.text").embedding_widths(carrying(family)))
        assert found.contexts == 6 and len(found.adjectives) == 70 and token.name == "Token SLERP"
        text = pack("evaluation.drift_report").report(found)
        assert f"place {plain.rank} of 71" in text and "Mahalanobis" in text
        for theme in ("dark", "light"):
            picture = pack("evaluation.drift_plot").plot(found, theme)
            assert picture.shape == (1, 1120, 1000, 3) and picture.dtype == torch.float32 and 0 <= picture.min() < picture.max() <= 1


def test_batches_measure_what_single_prompts_do():
    with torch.inference_mode():
        measure, clip = pack("evaluation.measure"), carrying("sdxl")
        prompts = ["a photo of a <v1> dog on the beach", "a (<v1>:1.3) dog in the snow", "a dog"]
        together = measure._features(clip, prompts)
        for i, prompt in enumerate(prompts):
            for key, value in measure._features(clip, [prompt]).items():
                assert torch.allclose(together[key][i], value[0], atol=1e-4), (key, prompt)


def test_a_plain_word_and_what_cannot_be_measured():
    with torch.inference_mode():
        measure_all, clip = pack("evaluation.measure").measure_all, carrying("sd15")
        prompts = "a {} in the snow\na {} on the beach"
        (word,) = measure_all(clip, "sks", "dog", text_models.sd15(seed=2), prompts)
        assert [state.name for state in word.states] == ["as learned", "Conditioning SLERP"]
        assert pack("evaluation.drift_plot").plots([word, word]).shape[0] == 2
        for arguments, match in (
            (("<v9>", "dog"), "no token '<v9>'"),
            (("sks", ""), "'sks' has no class word"),
            (("<v1>", "", None, "no place"), "'no place' has no"),
            (("<v1>", "", None, "one {}"), "at least 2"),
            (("<v1>", "", text_models.sd2(), prompts), "different model families"),
        ):
            with pytest.raises(ValueError, match=match):
                measure_all(clip, *arguments)
        with pytest.raises(ValueError, match="carries none"):
            measure_all(text_models.sd15(), "")


def test_the_node_in_the_server(server):
    generator = torch.Generator().manual_seed(3)
    files, Token = pack("formats.token_file"), pack("formats.token").LearnedToken
    files.save(Token("<v1>", "dog", {"clip_l": torch.randn(1, 768, generator=generator)}), server.base / "models" / "embeddings" / "drift-dog.safetensors")
    inputs = {"clip": ["base", 1], "token": "embedding:drift-dog, sks", "class_word": "dog", "prompts": "a {} in the snow\na {} on the beach\na {} at night"}
    result = server.run({
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": server.CHECKPOINT}},
        "drift": {"class_type": "KindredDrift", "inputs": inputs},
        "image": {"class_type": "PreviewImage", "inputs": {"images": ["drift", 1]}},
    })  # fmt: skip
    (text,) = result.ui["drift"]["text"]
    assert "embedding:drift-dog against dog, 3 scenes" in text and "sks against dog" in text
    assert [Image.open(io.BytesIO(data)).size for data in result.images["image"]] == [(1000, 1120)] * 2
