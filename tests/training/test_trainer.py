"""A real run on real photos and the host's own models: what moves, what does not, and that it can be repeated."""

import contextlib
import hashlib

import numpy as np
import pytest
import torch
from kindred_testing import pack
from kindred_testing.models import sd15
from kindred_testing.training import beyond_limits, held_out_loss, untrained_token
from PIL import Image

SETTINGS = {"steps": 24, "resolution": 64, "learning_rate": 1e-3, "seed": 7}


@pytest.fixture(scope="module")
def base():
    return sd15()


@pytest.fixture(scope="module")
def concept(dog_photos):
    pictures = [torch.from_numpy(np.array(Image.open(path).convert("RGB").resize((160, 120)))).float()[None] / 255 for path in dog_photos]
    return pack("training.data.concept").make_concept(pictures, "<v1>", "dog")


def run(base, concepts, beyond=None, **changes):
    trainer = pack("training.trainer")
    settings = beyond_limits(trainer.TrainSettings(**{**SETTINGS, **changes}), **(beyond or {}))
    with torch.inference_mode():
        return trainer.train(*base, concepts, settings)


@pytest.fixture(scope="module")
def trained(base, concept):
    before = digests(base)
    result = run(base, [concept])
    assert digests(base) == before, "the incoming MODEL, CLIP or VAE was changed"
    return result


def digests(base) -> dict[str, str]:
    """Every weight of model, text encoder and autoencoder, as bytes (uninitialised ones may hold NaN, which equals nothing)."""
    model, clip, vae = base
    states = {"model": model.model.state_dict(), "clip": clip.cond_stage_model.state_dict(), "vae": vae.first_stage_model.state_dict()}
    return {
        f"{part}.{name}": hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else str(tensor.item()).encode()).hexdigest()
        for part, state in states.items()
        for name, tensor in state.items()
    }


def test_only_tokens_and_cross_attention_kv_move(base, trained, concept):
    wanted = {f"{name}.diff" for name, _ in base[0].model.named_modules() if name.endswith(("attn2.to_k", "attn2.to_v"))}
    assert set(trained.lora) == {name if name.startswith("diffusion_model.") else f"diffusion_model.{name}" for name in wanted}
    assert all(difference.abs().max() > 0 for difference in trained.lora.values())
    (token,) = trained.tokens
    assert (token.text, token.class_word) == ("<v1>", "dog")
    start = pack("host.text").input_embeddings(base[1], "clip_l")[42170].float()  # the papers' rare token `ktn`
    assert token.vectors["clip_l"].shape == (1, 768)
    assert not torch.equal(token.vectors["clip_l"][0], start)
    # They act on the token's rows alone, and no weight of the model is patched.
    tuned, _ = pack("host.lora").apply_lora(base[0], None, trained.lora)
    (difference,) = pack("host.token_rows").differences(tuned)
    assert {key.removesuffix(".weight") + ".diff" for key in difference.patches} == set(trained.lora) and not tuned.patches
    assert not base[0].patches


def test_reconstruction_on_held_out_noise_falls_and_the_kind_is_kept(base, trained, concept):
    tuned, _ = pack("host.lora").apply_lora(base[0], None, trained.lora)
    before = held_out_loss(*base, untrained_token(base[1]), concept)
    assert held_out_loss(tuned, base[1], base[2], trained.tokens[0], concept) < 0.8 * before
    assert trained.history[-1].spl < trained.history[0].spl  # from a rare token toward the kind


def test_the_prediction_is_what_the_host_denoises_with(base):
    """The trainer's eps against the host's own `apply_model`, at several noise levels: x0 = x - sigma * eps."""
    model, clip, _ = base
    host = pack("host.training")
    with host.training_mode(), torch.no_grad():
        denoiser, text = pack("host.denoiser").TrainableDenoiser(model), pack("host.trainable_text").TrainableText(clip)
        latents, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
        sigma = model.model.model_sampling.sigmas[[30, 480, 970]]
        conditioning = text.encode(clip, "a photo of a dog")
        prediction, target = denoiser.predict(latents, noise, sigma, [conditioning] * 3)
        assert torch.equal(target, noise)
        noisy = latents + noise * sigma.view(-1, 1, 1, 1)
        with torch.inference_mode():
            denoised = model.model.apply_model(noisy, sigma, c_crossattn=conditioning[0].expand(3, -1, -1))
        assert torch.allclose(noisy - sigma.view(-1, 1, 1, 1) * prediction, denoised, rtol=1e-4, atol=1e-4)


def test_text_encoding_for_training_equals_the_hosts(base):
    """The training copy, clip skip included, gives the conditioning that core's CLIPTextEncode gives."""
    for layer in (None, -2):
        clip = base[1].clone()
        clip.layer_idx = layer
        with torch.inference_mode():
            expected = clip.encode_from_tokens(clip.tokenize("a (red:1.3) dog on the beach"))
        host = pack("host.training")
        with host.training_mode():
            actual = pack("host.trainable_text").TrainableText(clip).encode(clip, "a (red:1.3) dog on the beach").conditioning
        assert torch.allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_the_same_seed_gives_the_same_file_and_another_seed_another(base, concept, tmp_path):
    concept_file = pack("formats.concept_file")

    def file(name: str, **changes) -> bytes:
        result = run(base, [concept], **{"steps": 3, **changes})
        saved = concept_file.save(result.lora, result.tokens, "dog", tmp_path / name, tmp_path / name / "embeddings", dtype=torch.float32)
        return b"".join(path.read_bytes() for path in [saved.lora, *saved.embeddings])

    first = file("a")
    assert file("b") == first
    assert file("c", seed=8) != first


def test_prior_images_and_several_concepts(base, concept):
    make = pack("training.data.concept").make_concept
    pictures = [torch.rand(2, 80, 64, 3)]
    second = make(pictures, "<cat>", "cat", prior_images=[torch.rand(3, 64, 64, 3)], captions="\na sleeping {token}")
    result = run(base, [concept, second], steps=2)
    assert [token.text for token in result.tokens] == ["<v1>", "<cat>"]
    assert set(result.history[-1].drift) == {"<v1>", "<cat>"}
    assert result.history[0].prior > 0
    with pytest.raises(ValueError, match="share a token"):
        run(base, [concept, concept])


def test_a_loss_that_is_no_number_stops_before_the_step(base, concept):
    with pytest.raises(FloatingPointError, match="learning_rate"):
        run(base, [concept], beyond={"learning_rate": 1e30}, steps=6, clip_norm=0.0)


def test_an_interrupt_leaves_everything_as_it_was(base, concept):
    import comfy.model_management

    before = digests(base)
    trainer = pack("training.trainer")

    def interrupt(step):
        if step.step == 2:
            comfy.model_management.interrupt_current_processing()

    with torch.inference_mode(), pytest.raises(comfy.model_management.InterruptProcessingException):
        trainer.train(*base, [concept], trainer.TrainSettings(**SETTINGS), on_step=interrupt)
    with contextlib.suppress(comfy.model_management.InterruptProcessingException):
        comfy.model_management.throw_exception_if_processing_interrupted()
    assert comfy.model_management.in_training is False
    assert torch.is_grad_enabled()
    assert digests(base) == before


def test_a_run_leaves_no_memory_behind(base, concept):
    """The tensors alive after a run, its result gone, are those before it; also after an interrupted one."""
    import gc

    def alive() -> int:
        gc.collect()
        storages = {}
        for thing in gc.get_objects():
            if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
                storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        return sum(storages.values())

    def halt(step):
        raise KeyboardInterrupt

    run(base, [concept], steps=1)  # what is loaded once stays
    before = alive()
    run(base, [concept], steps=2, gradient_checkpointing=True)
    assert abs(alive() - before) <= 0.05 * before
    trainer = pack("training.trainer")
    with torch.inference_mode(), pytest.raises(KeyboardInterrupt):
        trainer.train(*base, [concept], trainer.TrainSettings(**SETTINGS), on_step=halt)
    assert abs(alive() - before) <= 0.05 * before


@pytest.mark.parametrize("optimizer, schedule", [("Adafactor", "linear"), ("Prodigy", "cosine"), ("AdamW", "cosine with restarts")])
def test_each_optimizer_and_schedule_learns(base, concept, optimizer, schedule):
    if optimizer == "Prodigy":
        pytest.importorskip("prodigyopt")
    result = run(base, [concept], optimizer=optimizer, schedule=schedule, steps=4, learning_rate=0.0 if optimizer == "Prodigy" else 1e-3)
    assert all(difference.abs().max() > 0 for difference in result.lora.values())
    assert len({step.learning_rate for step in result.history}) > 1


def test_an_optimizer_that_is_not_installed_is_named_before_anything_is_encoded(base, concept):
    with pytest.raises(ValueError, match=r"'AdamW 8-bit' needs (the Python package bitsandbytes|a CUDA card).*'AdamW'"):
        run(base, [concept], optimizer="AdamW 8-bit")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_what_float32_learns(base, concept, precision):
    """Autocast, for fp16 with a scaled loss: what is learned stays float32 and close to the float32 run."""
    exact, rough = (run(base, [concept], steps=3, precision=name) for name in ("fp32", precision))
    assert all(value.dtype == torch.float32 for value in rough.lora.values())
    assert rough.history[0].loss == pytest.approx(exact.history[0].loss, rel=0.02)
    one, two = (torch.cat([value.flatten() for value in result.lora.values()]) for result in (exact, rough))
    assert torch.nn.functional.cosine_similarity(one, two, dim=0) > 0.9


def test_fp16_that_always_overflows_ends_in_a_sentence(base, concept):
    """Case 43. Every step is skipped: a short run ends with its last step, a long one after 20, and never as if something had been learned."""
    trainer = pack("training.trainer")
    for steps, row in ((2, 2), (40, 20)):
        seen = []
        with (
            pytest.raises(FloatingPointError, match=rf"overflows in precision 'fp16': the last {row} steps were skipped.*'bf16' or 'fp32'"),
            torch.inference_mode(),
        ):
            settings = beyond_limits(trainer.TrainSettings(**{**SETTINGS, "steps": steps, "precision": "fp16", "batch_size": 1}), spl_weight=1e30)
            trainer.train(*base, [concept], settings, seen.append)
        assert len(seen) == row and all(step.skipped for step in seen)


def test_fp16_says_how_many_steps_it_skipped(base, concept, tmp_path):
    """Case 43. The first scale of the loss is too large for this weight; it is halved until the gradient fits, and the run goes on."""
    trainer, said = pack("training.trainer"), []
    settings = trainer.TrainSettings(**{**SETTINGS, "steps": 10, "precision": "fp16", "spl_weight": 1e3, "batch_size": 1})
    with torch.inference_mode():
        result = trainer.train(*base, [concept], settings, keeping=trainer.Keeping(tmp_path, every=5, tell=said.append))
    skipped = sum(step.skipped for step in result.history)
    assert 0 < skipped < 10 and said == [said[0]] and said[0].startswith(f"{skipped} of 10 steps were skipped")
    assert all(torch.isfinite(value).all() for value in result.lora.values())


def test_output_preservation_holds_the_class_prompt_to_the_base(base, concept):
    """Nothing at the first step of a LoRA, which changes nothing yet; smaller at the end where it is weighted."""
    settings = {"method": "lora", "rank": 4, "steps": 8, "learning_rate": 3e-3, "augment": False}
    watched, held = (run(base, [concept], **settings, preservation_weight=weight).history for weight in (1e-9, 30.0))
    assert watched[0].preservation == held[0].preservation == 0
    assert 0 < held[-1].preservation < watched[-1].preservation
    assert watched[-1].loss == pytest.approx(watched[-1].reconstruction, rel=1e-5)


def test_min_snr_and_huber_reach_the_loss(base, concept):
    still = {"steps": 6, "spl_weight": 0.0, "learning_rate": 1e-30, "weight_decay": 0.0}  # the same noise levels on the same weights
    plain, weighted, robust = (
        sum(step.reconstruction for step in run(base, [concept], **still, **change).history) for change in ({}, {"min_snr_gamma": 0.5}, {"loss": "huber"})
    )
    assert weighted < plain and robust < plain


def test_accumulation_is_a_larger_batch(base, concept):
    """Two batches of one photo each and one of two see the same photos; the first step's loss is their mean."""
    one = run(base, [concept], steps=1, batch_size=1, accumulation=2, augment=False, spl_weight=0.0).history[0]
    singles = [run(base, [concept], steps=2, batch_size=1, augment=False, spl_weight=0.0, learning_rate=1e-30, weight_decay=0.0).history[i] for i in range(2)]
    assert one.loss == pytest.approx(sum(step.loss for step in singles) / 2, rel=1e-5)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"steps": 0}, "steps is 0"),
        ({"resolution": 100}, "multiple of 8"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
        ({"spl_weight": -1.0}, "spl_weight is -1"),
    ],
)
def test_settings_that_make_no_sense_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        pack("training.trainer").TrainSettings(**change)


def test_a_token_that_is_a_word_is_refused(base, concept):
    make = pack("training.data.concept").make_concept
    with pytest.raises(ValueError, match="already a word of the vocabulary of clip_l"):
        run(base, [make([torch.rand(1, 64, 64, 3)], "sofa", "dog")])


def test_an_initializer_of_several_tokens_is_said_and_their_mean_is_used(base, caplog):
    make, tokens, text = pack("training.data.concept").make_concept, pack("training.adapters.tokens"), pack("host.text")
    table = text.input_embeddings(base[1], "clip_l").float()
    for word, ids, said in (
        ("golden retriever", text.word_ids(base[1], "clip_l", "golden retriever"), True),
        ("teapot", text.word_ids(base[1], "clip_l", "teapot"), False),
        ("ktn", [42170], False),
    ):
        caplog.clear()
        with caplog.at_level("INFO"), torch.inference_mode(False):
            vectors = tokens.TokenVectors(base[1], [make([torch.rand(1, 64, 64, 3)], "<v1>", "dog", initializer=word)], torch.device("cpu"))
        assert torch.allclose(vectors.parameters["<v1>", "clip_l"][0], table[torch.tensor(ids)].mean(dim=0))
        assert (f"the initializer '{word}'" in caplog.text and "mean" in caplog.text) == said


def test_a_token_that_the_clip_carries_already_is_refused(base, concept, trained):
    carrying = pack("host.text").carry_tokens(base[1], trained.tokens)
    with pytest.raises(ValueError, match="'<v1>' is already a token that this CLIP carries"):
        run((base[0], carrying, base[2]), [concept])
