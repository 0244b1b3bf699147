"""The measures: the shipped judge on renders it has never seen, intervals against known answers, the real scorers on real (tiny) models."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from kindred_testing import pack

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT / "dev" / "demo") not in sys.path:
    sys.path.append(str(ROOT / "dev" / "demo"))

from base import fidelity  # noqa: E402
from base.judge import STORED, Judge  # noqa: E402
from world import scene, subjects  # noqa: E402


def stack(images):
    return torch.stack([torch.from_numpy(np.asarray(image).copy()).movedim(-1, 0).float() / 255 for image in images])


@pytest.fixture(scope="module")
def judge():
    return Judge.load(STORED)


def test_the_judge_reads_new_renders_of_held_out_combinations(judge):
    rng = random.Random(99)
    combos = rng.sample(sorted(scene.held_out()), 200)
    wanted = [dict(zip(scene.ATTRIBUTES, combo, strict=True)) for combo in combos]
    right = judge.right(stack([scene.named(*combo, seed=rng.randrange(1 << 30)).draw(64) for combo in combos]), wanted)
    assert sum(all(r.values()) for r in right) >= 194


def test_the_judge_tells_a_subject_from_its_look_alikes(judge):
    rng, right = random.Random(98), []
    for name, subject in subjects.SUBJECTS.items():
        references = judge.identity(stack(subjects.photos(name, 64))).mean(0)
        for _ in range(20):
            like = subjects.stranger(rng, near=subject.look)
            mine = subject.scene(rng.choice(scene.ACCESSORIES), rng.choice(scene.PLACES), rng.randrange(1 << 30))
            mine, other = judge.identity(stack([mine.draw(64), subjects.stranger_scene(rng, subject.class_word, like).draw(64)])) @ references
            right.append(bool(mine > other))
    assert sum(right) >= 0.9 * len(right)


def test_prompts_are_read_and_impossible_wishes_refused(judge):
    assert judge.asked("a photo of a <v1> dog wearing a hat, on the beach") == {"class": "dog", "accessory": "hat", "place": "beach"}
    image = stack([scene.named("dog", "red").draw(64)])
    with pytest.raises(ValueError, match="'giraffe' is outside the judge's world"):
        judge.right(image, [{"class": "giraffe"}])
    with pytest.raises(ValueError, match="found 2 entries for 1 images"):
        judge.right(image, [{}, {}])
    with pytest.raises(ValueError, match="expected \\[batch, 3"):
        judge.identity(torch.zeros(1, 64, 64, 3))


def test_the_worlds_scores_in_a_report(judge):
    metrics = pack("evaluation.metrics")
    subject = subjects.SUBJECTS["biscuit"]
    images = stack([subject.scene("hat", "moon", seed).draw(128) for seed in range(6)])
    references = stack(subjects.photos("biscuit", 64))
    report = metrics.evaluate(
        images, references, ["a photo of a <v1> dog wearing a hat on the moon"], [fidelity.PromptFidelity(judge), fidelity.SubjectFidelity(judge)]
    )
    assert np.mean(report.scores["prompt fidelity"]) > 0.9
    others = metrics.evaluate(images, stack(subjects.photos("pepper", 64)), ["a dog"], [fidelity.SubjectFidelity(judge)])
    assert np.mean(report.scores["subject fidelity"]) > np.mean(others.scores["subject fidelity"]) + 0.3
    assert report.table().count("\n") == 3
    with pytest.raises(ValueError, match="names nothing that the judge knows"):
        metrics.evaluate(images, references, ["nothing of this world"], [fidelity.PromptFidelity(judge)])


def test_intervals_cover_and_groups_widen():
    bootstrap = pack("evaluation.bootstrap")
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        interval = bootstrap.mean(rng.normal(3, 1, 60), resamples=400, seed=seed)
        covered += interval.low <= 3 <= interval.high
    assert 88 <= covered <= 99
    subject = np.repeat(rng.normal(0, 1, 8), 25)
    values = subject + rng.normal(0, 0.1, 200)
    alone, grouped = bootstrap.mean(values), bootstrap.mean(values, groups=np.repeat(np.arange(8), 25).tolist())
    assert grouped.value == alone.value
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
    assert bootstrap.share([True] * 64).low < 0.95  # 64 right in 64 is no proof of 100%
    pairs = bootstrap.difference([1.1, 2.1, 3.1, 4.2], [1.0, 2.0, 3.0, 4.0])
    assert 0 < pairs.low < pairs.value < pairs.high
    with pytest.raises(ValueError, match="2 values after and 1 before"):
        bootstrap.difference([1, 2], [1])
    with pytest.raises(ValueError, match="1 that are not finite"):
        bootstrap.mean([1.0, float("nan")])


@pytest.fixture
def tiny_models(tmp_path):
    """Real transformers models of toy size with random weights, saved the way a user's folders are."""
    import transformers as t

    torch.manual_seed(0)
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", *(c + "</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = t.CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), pad_token="<|endoftext|>")
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip = t.CLIPModel(
        t.CLIPConfig(
            text_config={**small, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1},
            vision_config={**small, "image_size": 32, "patch_size": 8},
            projection_dim=16,
        )
    )
    clip.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    size = {"height": 32, "width": 32}
    t.CLIPImageProcessor(size=size, crop_size=size).save_pretrained(tmp_path / "clip")
    t.ViTModel(t.ViTConfig(**small, image_size=32, patch_size=8)).save_pretrained(tmp_path / "dino")
    t.ViTImageProcessor(size=size).save_pretrained(tmp_path / "dino")
    blip = t.Blip2Config(
        vision_config={**small, "image_size": 32, "patch_size": 8},
        qformer_config={**small, "vocab_size": 9, "encoder_hidden_size": 32, "use_qformer_text_input": True, "cross_attention_frequency": 1},
        text_config={
            "model_type": "opt",
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "vocab_size": 9,
            "word_embed_proj_dim": 32,
        },
        num_query_tokens=4,
        image_text_hidden_size=16,
    )
    t.Blip2ForImageTextRetrieval(blip).save_pretrained(tmp_path / "blip2")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "hat"]))
    t.Blip2Processor(t.BlipImageProcessor(size=size), t.BertTokenizer(str(tmp_path / "vocab.txt"))).save_pretrained(tmp_path / "blip2")
    text = {**small, "vocab_size": 9, "encoder_hidden_size": 32, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3, "pad_token_id": 0}
    older = t.BlipConfig(text_config=text, vision_config={**small, "image_size": 32, "patch_size": 8}, projection_dim=16, image_text_hidden_size=16)
    t.BlipForImageTextRetrieval(older).save_pretrained(tmp_path / "blip")
    t.BlipProcessor(t.BlipImageProcessor(size=size), t.BertTokenizer(str(tmp_path / "vocab.txt"))).save_pretrained(tmp_path / "blip")
    return tmp_path


def clip_scale(folder) -> float:
    """exp(logit_scale) of the saved model, read without our code."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return file.get_tensor("logit_scale").exp().item()


def test_the_real_scorers_through_transformers(tiny_models):
    """CLIP-T, CLIP-I, DINO and BLIP2-T give each picture one score; a picture's likeness with itself is exactly one."""
    scorers, metrics = pack("evaluation.scorers"), pack("evaluation.metrics")
    images = torch.rand(3, 3, 48, 40, generator=torch.Generator().manual_seed(1))
    measures = scorers.load({name: tiny_models / folder for name, folder in (("blip2", "blip2"), ("clip", "clip"), ("dino", "dino"), ("pickscore", "clip"))})
    report = metrics.evaluate(images, images[:1], ["a dog", "a cat", "a hat"], measures)
    assert list(report.scores) == ["CLIP-T", "CLIP-I", "DINO", "BLIP2-T", "PickScore"]
    older = metrics.evaluate(images, images[:1], ["a dog", "a cat", "a hat"], scorers.load({"blip2": tiny_models / "blip"}))
    assert list(older.scores) == ["BLIP-T"], "the result does not say which BLIP it was"
    assert all(-1 <= cosine <= 1 for cosine in older.scores["BLIP-T"]) and len(set(older.scores["BLIP-T"])) == 3
    assert {*report.scores, *older.scores} == {name for one in scorers.MODELS.values() for name in one.measures}
    with pytest.raises(ValueError, match="of the type 'vit'; expected a BLIP-2 or BLIP"):
        scorers.load({"blip2": tiny_models / "dino"})
    scale = clip_scale(tiny_models / "clip")
    assert report.scores["PickScore"] == pytest.approx([scale * cosine for cosine in report.scores["CLIP-T"]], rel=1e-5)
    assert report.scores["CLIP-I"][0] == pytest.approx(1, abs=1e-5)
    assert report.scores["DINO"][0] == pytest.approx(1, abs=1e-5)
    assert report.scores["DINO"][1] < 0.9999
    with pytest.raises(ValueError, match="nothing is downloaded"):
        scorers.load({"dino": tiny_models / "nowhere"})
    with pytest.raises(ValueError, match=r"no scoring model 'lpips'; expected one of clip, dino"):
        scorers.load({"lpips": tiny_models})
    with pytest.raises(TypeError, match="is incomplete"):
        scorers.ScoringModel("half", "half a model", ("half",), {})
    with pytest.raises(ValueError, match="found 2 for 3 images"):
        metrics.evaluate(images, images, ["a", "b"], measures)


def test_a_trainings_previews_are_scored_by_the_users_models(tiny_models):
    """As the host's memory management keeps them: likeness by DINO, prompt fidelity by CLIP, which is loaded once for both of its measures."""
    scoring, scorers, metrics = pack("training.scoring"), pack("evaluation.scorers"), pack("evaluation.metrics")
    draw = torch.Generator().manual_seed(4)
    concept = pack("training.data.concept").make_concept([torch.rand(2, 48, 40, 3, generator=draw)], "<v1>", "dog")
    given = scorers.load({"clip": tiny_models / "clip", "dino": tiny_models / "dino"})
    assert given[0].model is given[1].model
    pictures = torch.rand(2, 48, 40, 3, generator=draw)
    drawn = [scoring.Drawn(pictures[0], "a <v1> dog", 0), scoring.Drawn(pictures[1], "a cat", None)]
    likeness, prompt = scoring.Scoring(given).score(drawn, [concept])
    photos = torch.stack(concept.images).movedim(-1, 1)
    report = metrics.evaluate(pictures.movedim(-1, 1), photos, ["a dog", "a cat"], given)
    assert likeness == pytest.approx(report.scores["DINO"][0], abs=1e-5) and prompt == pytest.approx(np.mean(report.scores["CLIP-T"]), abs=1e-5)
    assert scoring.Scoring(given[:2]).score(drawn[:1], [concept])[0] == pytest.approx(report.scores["CLIP-I"][0], abs=1e-5), "without DINO"
    assert scoring.Scoring([]).score(drawn, [concept]) == (None, None)
