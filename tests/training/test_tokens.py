"""What is learned in words, on the host's own text encoders: how vectors start, where they go, and the direction-only form."""

import pytest
import torch
from kindred_testing import pack, text_models
from torch.nn.functional import cosine_similarity, normalize

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def training():
    with pack("host.training").training_mode():
        yield


def concept(token: str = "<v1>", initializer: str = "ktn"):
    return pack("training.data.concept").make_concept([torch.rand(1, 32, 32, 3)], token, "dog", initializer=initializer)


def token_vectors(clip, initializer: str = "ktn", **options):
    return pack("training.adapters.tokens").TokenVectors(clip, [concept(initializer=initializer)], CPU, **options)


def table(clip, key: str = "clip_l") -> torch.Tensor:
    return pack("host.text").input_embeddings(clip, key).float()


def test_each_concept_of_a_run_starts_from_a_word_of_its_own():
    """As in the papers' code, ktn+pll+ucd: two tokens with one vector are one concept at step 0. `ktn` twice is what older workflows say."""
    clip = text_models.sd15()
    for words in (("auto", "auto", "auto"), ("ktn", "ktn", "ktn"), ("auto", "ktn", "auto"), ("pll", "auto", "auto")):
        concepts = [concept(f"<v{at}>", word) for at, word in enumerate(words)]
        vectors = pack("training.adapters.tokens").TokenVectors(clip, concepts, CPU).parameters
        first = [vectors[f"<v{at}>", "clip_l"].detach() for at in range(3)]
        assert len({tuple(vector.flatten().tolist()) for vector in first}) == 3
        if "pll" not in words:
            assert all(torch.equal(vector[0], table(clip)[entry]) for vector, entry in zip(first, (42170, 47629, 44746), strict=True))
    with pytest.raises(ValueError, match=r"start from the same word \('dog'\)"):
        pack("training.adapters.tokens").TokenVectors(clip, [concept("<a>", "dog"), concept("<b>", "")], CPU)


def test_several_vectors_start_from_the_initializers_own(caplog):
    clip = text_models.sd15()
    own = table(clip)[torch.tensor(pack("host.text").word_ids(clip, "clip_l", "a red sofa"))]

    def start(initializer="a red sofa", **options):
        with caplog.at_level("INFO"):
            return token_vectors(clip, initializer, **options).parameters["<v1>", "clip_l"].detach()

    assert torch.equal(start(vectors=3), own) and not caplog.text
    assert torch.allclose(start(vectors=2), torch.stack([own[:2].mean(dim=0), own[2]])) and "in 2 runs" in caplog.text
    eight = start(vectors=8)
    assert torch.equal(eight[:3], own) and "is 3 of 8 vectors" in caplog.text
    for index in range(3, 8):  # the repetitions are near, and no two vectors are equal
        assert cosine_similarity(eight[index], own[index % 3], dim=0) > 0.99
    assert len(torch.unique(eight, dim=0)) == 8
    assert torch.equal(start(vectors=8), eight) and not torch.equal(start(vectors=8, seed=1), eight)
    for count in (0, 9):
        with pytest.raises(ValueError, match=f"vectors is {count}; expected 1 to 8"):
            start(vectors=count)


def test_every_vector_stands_in_the_prompt_and_learns():
    clip = text_models.sdxl()
    vectors = token_vectors(clip, vectors=3)
    text = pack("host.text")
    carrying = text.carry_tokens(clip, vectors.carried())
    features = pack("host.trainable_text").TrainableText(clip).eos_features(carrying, "a photo of a <v1> dog")
    sum(feature.square().sum() for feature in features).backward()
    assert set(vectors.parameters) == {("<v1>", "clip_l"), ("<v1>", "clip_g")}
    assert all((parameter.grad.norm(dim=-1) > 0).all() for parameter in vectors.parameters.values())
    (learned,) = vectors.learned({"steps": "3"})
    assert learned.metadata == {"steps": "3"} and not learned.vectors["clip_g"].requires_grad
    assert torch.equal(learned.vectors["clip_g"], vectors.parameters["<v1>", "clip_g"])


def test_direction_only_keeps_the_length_and_learns():
    """Directional Textual Inversion, and without it the very same steps leave the sphere."""
    clip, text = text_models.sd15(), pack("host.text")
    encoder = pack("host.trainable_text").TrainableText(clip)
    with torch.no_grad():
        (target,) = encoder.eos_features(clip, "a photo of a green sofa")
    mean = float(table(clip).double().norm(dim=-1).mean())

    def train(direction_only: bool):
        vectors = token_vectors(clip, vectors=2, direction_only=direction_only)
        (parameter,) = vectors.parameters.values()
        start, losses, lengths = parameter.detach().clone(), [], []
        optimizer = torch.optim.AdamW([parameter], lr=2e-3, weight_decay=0.1)
        for _ in range(8):
            (feature,) = encoder.eos_features(text.carry_tokens(clip, vectors.carried()), "a photo of a <v1>")
            loss = 1 - cosine_similarity(feature, target, dim=0)
            loss.backward()
            before = parameter.grad.clone()
            vectors.before_step()
            if direction_only:
                assert (parameter.grad * parameter).sum(dim=-1).abs().max() < 1e-6 * parameter.grad.norm() * mean
            else:
                assert torch.equal(parameter.grad, before)
            optimizer.step()
            moved = parameter.detach().clone()
            vectors.after_step()
            assert direction_only or torch.equal(parameter, moved)
            optimizer.zero_grad()
            losses.append(loss.item())
            lengths.append(parameter.detach().norm(dim=-1))
        return start, parameter.detach(), losses, torch.stack(lengths)

    start, end, losses, lengths = train(direction_only=True)
    assert (lengths / mean - 1).abs().max() < 1e-6
    assert (start.norm(dim=-1) / mean - 1).abs().max() < 1e-6
    assert (cosine_similarity(start, end, dim=-1) < 0.99).all()
    assert losses[-1] < 0.9 * losses[0]
    free = train(direction_only=False)[3]
    assert (free / free[0] - 1).abs().max() > 1e-3


def test_the_riemannian_gradient_is_that_of_the_direction():
    """Equal to autograd's through e = m v / |v|, of a loss with the von Mises-Fisher prior -kappa <mu, v> added."""
    clip = text_models.sd15()
    vectors = token_vectors(clip, vectors=2, direction_only=True, kappa=0.3)
    ((name, parameter),) = vectors.parameters.items()
    weight, start, length = torch.randn(768, generator=torch.Generator().manual_seed(1)), parameter.detach().clone(), parameter.detach()[0].norm()
    with torch.no_grad():
        parameter += 0.01 * torch.randn(2, 768, generator=torch.Generator().manual_seed(2))
    vectors.after_step()

    free = parameter.detach().clone().requires_grad_()
    direction = normalize(free, dim=-1)
    ((weight * direction * length).tanh().sum() - 0.3 * (normalize(start, dim=-1) * direction).sum()).backward()
    (weight * parameter).tanh().sum().backward()
    vectors.before_step()
    assert torch.allclose(parameter.grad, free.grad, rtol=1e-4, atol=1e-5)
    assert name == ("<v1>", "clip_l")


def test_encoders_that_are_left_out_read_the_class_word():
    clip, text = text_models.sd3(), pack("host.text")
    vectors = token_vectors(clip)
    assert {key for _, key in vectors.parameters} == {"clip_l", "clip_g"}, "T5 beside CLIP stays out unless it is asked for"
    carrying = text.carry_tokens(clip, vectors.carried())
    assert carrying.tokenize("a photo of a <v1>")["t5xxl"] == clip.tokenize("a photo of a dog")["t5xxl"]
    assert {key for _, key in token_vectors(clip, encoders=["t5xxl", "clip_l"]).parameters} == {"t5xxl", "clip_l"}
    assert {key for _, key in token_vectors(text_models.pixart(), "dog").parameters} == {"t5xxl"}, "where there is no CLIP, all are trained"
    with pytest.raises(ValueError, match="encoders names bert; this CLIP has clip_l, clip_g, t5xxl"):
        token_vectors(clip, encoders=["bert"])
