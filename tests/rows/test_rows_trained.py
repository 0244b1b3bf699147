"""Training on the token's rows: the same mask as in sampling, nothing moves without the token, and a run goes on to the bit."""

import numpy as np
import pytest
import torch
from kindred_testing import pack
from kindred_testing import rows as r
from PIL import Image

SETTINGS = {"steps": 4, "resolution": 64, "learning_rate": 1e-3, "token_learning_rate": 1e-2, "seed": 7, "batch_size": 2}
PROMPT, CLASS = "a photo of a <v1> dog on the beach", "a photo of a dog on the beach"


@pytest.fixture(scope="module")
def concepts(dog_photos):
    pictures = [torch.from_numpy(np.array(Image.open(path).convert("RGB").resize((160, 120)))).float()[None] / 255 for path in dog_photos]
    make = pack("training.data.concept").make_concept
    return [make(pictures[:2], "<v1>", "dog"), make(pictures[2:4], "<v2>", "dog")]


def started(base, concepts, **changes):
    """A run that is ready for its first step."""
    run = pack("training.run").Run(*base, concepts, pack("training.settings").TrainSettings(**{**SETTINGS, **changes}))
    run.prepare()
    return run


def predicted(run, prompts):
    """The training copy's prediction for each prompt, on noise of its own."""
    generator = torch.Generator().manual_seed(3)
    noisy, sigma = torch.randn(len(prompts), 4, 8, 8, generator=generator), torch.full((len(prompts),), 2.0)
    with torch.no_grad():
        return noisy, sigma, run.denoiser.output(noisy, sigma, run.prompts(prompts))


WAYS = [
    {"method": "kv + token"},
    {"method": "kv + token", "vectors": 3, "gradient_checkpointing": True},
    {"method": "lora + token", "targets": "text", "rank": 4},
    {"method": "lora + token", "targets": "text", "adapter": "DoRA", "rank": 4},
]


@pytest.mark.parametrize("ways", WAYS, ids=str)
def test_training_and_sampling_compute_the_same(base, concepts, ways):
    """A batch with prompts of one and of two chunks, with and without tokens: the training copy against the saved result in the host's model."""
    host = pack("host.training")
    prompts = [PROMPT, CLASS, "a <v2> dog and a <v1> dog", "a <v1> dog " + "very " * 90 + "near a <v2> dog"]
    with host.training_mode():
        run = started(base, concepts, **ways)
        for step in range(2):
            run.step(step)
        noisy, sigma, mine = predicted(run, prompts)
        with torch.no_grad(), run.learned.disabled():
            untrained = run.denoiser.output(noisy, sigma, run.prompts(prompts))
        result = run.result()
    assert torch.equal(mine[1], untrained[1]), "the class prompt's prediction moved"
    assert all(not torch.equal(mine[i], untrained[i]) for i in (0, 2, 3))
    model, clip = pack("host.lora").apply_lora(base[0], base[1], result.lora)
    clip = pack("host.text").carry_tokens(clip, result.tokens)
    for index, prompt in enumerate(prompts):
        denoised = predicted_by_host(model, r.encode(clip, prompt), noisy[index : index + 1], sigma[index : index + 1])
        eps = (noisy[index] - denoised) / sigma[index]
        assert (eps - mine[index]).abs().max() < 2e-4 * mine[index].abs().max(), prompt


def predicted_by_host(model, conditioning, noisy, sigma):
    """What the host's sampler denoises `noisy` to, inside a run of `model`."""
    import comfy.samplers

    seen = []

    class Once(comfy.samplers.CFGGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            seen.append(super().predict_noise(noisy, sigma, model_options or {}, seed))
            return seen[-1]

    guider = Once(model)
    guider.set_conds(conditioning, conditioning)
    guider.set_cfg(1.0)
    r.sample(model, guider=guider, steps=1)
    return seen[0][0]


def test_checkpointing_gives_the_same_gradients(base, concepts):
    """The blocks that are computed again know the token's rows again, also after a later forward with other prompts."""
    gradients = []
    for checkpointing in (False, True):
        with pack("host.training").training_mode():
            run = started(base, concepts, gradient_checkpointing=checkpointing)
            latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
            first = run.denoiser.output(latents, torch.tensor([2.0, 1.0]), run.prompts([PROMPT, CLASS]))
            second = run.denoiser.output(latents, torch.tensor([2.0, 1.0]), run.prompts(["<v2>", "a <v2> dog in the snow"]))
            (first.square().mean() + 2 * second.square().mean()).backward()
            gradients.append({name: parameter.grad.clone() for name, parameter in run.learned.parameters.items()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        assert (gradient - gradients[1][name]).abs().max() < 1e-4 * gradient.abs().max(), name


def test_a_resumed_run_ends_with_the_same_bits(base, concepts):
    results = []
    for stop in (None, 2):
        with pack("host.training").training_mode():
            run, state = started(base, concepts), None
            for step in range(4):
                if step == stop:
                    state = dict(run.state())
                    run = started(base, concepts)
                    run.restore(state)
                run.step(step)
            results.append(run.result())
    assert all(torch.equal(results[0].lora[key], results[1].lora[key]) for key in results[0].lora)
    assert results[0].lora.metadata == results[1].lora.metadata


def test_a_saved_concept_keeps_its_rows(base, concepts, tmp_path):
    """Through the files, also compressed and in kohya's layout."""
    with pack("host.training").training_mode():
        run = started(base, concepts[:1])
        for step in range(2):
            run.step(step)
        result = run.result()
    file, text, names = pack("formats.concept_file"), pack("host.text"), pack("host.layer_names")
    pictures = {}
    for name, layout, compress in (("core", "comfyui", 0.0), ("low", "comfyui", 0.999), ("kohya", "kohya", 0.0)):
        export = names.export_for(base[0], layout, compress)
        file.save(result.lora, result.tokens, name, tmp_path / "loras", tmp_path / "embeddings", dtype=torch.float32, export=export)
        path = tmp_path / "loras" / f"{name}.safetensors"
        lora, tokens = file.load(
            path, text.embedding_widths(base[1]), lambda wanted: next((tmp_path / "embeddings").rglob(wanted), None), names.convert_for(base[0])
        )
        model, clip = pack("host.lora").apply_lora(base[0], base[1], lora)
        clip = text.carry_tokens(clip, tokens)
        assert torch.equal(r.sample(model, r.encode(clip, CLASS), r.encode(clip, "")), r.sample(base[0], r.encode(clip, CLASS), r.encode(clip, "")))
        pictures[name] = r.sample(model, r.encode(clip, PROMPT), r.encode(clip, ""))
    plain = r.sample(base[0], r.encode(clip, PROMPT), r.encode(clip, ""))
    assert (pictures["core"] - plain).abs().max() > 1e-3
    for name in ("low", "kohya"):
        assert (pictures[name] - pictures["core"]).abs().max() < 0.05 * (pictures["core"] - plain).abs().max()


def test_a_token_that_was_turned_toward_its_class_is_saved_and_loaded(base, tmp_path):
    """Token SLERP before Save Concept: the vectors are no longer the trained ones, and the rows are still the concept's."""
    file, text, one = pack("formats.concept_file"), pack("host.text"), r.concept(base)
    model, clip = r.loaded(base, one)
    turned, tokens = pack("embedding.carried").adjust_clip(clip, "<v1>", "", 0.5, 0.5, "midpoint")
    file.save(one.lora, tokens, "turned", tmp_path / "loras", tmp_path / "embeddings", dtype=torch.float32)
    lora, tokens = file.load(tmp_path / "loras" / "turned.safetensors", text.embedding_widths(base[1]), lambda wanted: tmp_path / "embeddings" / wanted)
    again, _ = pack("host.lora").apply_lora(base[0], None, lora)
    pictures = [
        r.sample(each, r.encode(encoder, PROMPT), r.encode(base[1], "")) for each, encoder in ((model, turned), (again, text.carry_tokens(base[1], tokens)))
    ]
    r.assert_close(*pictures, r.sample(base[0], r.encode(turned, PROMPT), r.encode(base[1], "")))


def test_a_model_without_text_layers_trains_everywhere_and_says_so(base, concepts, caplog):
    caplog.set_level("INFO")
    with pack("host.training").training_mode():
        run = started(base, concepts, method="lora + token", targets="attention", rank=2)
        assert run.learned.rows == "token and end"
        run = started(base, concepts, method="token")
        assert run.learned.rows == "all"


def test_the_leak_of_the_class_prompt_is_measured_and_zero_on_token_rows(base, concepts):
    """Against predictions made here; and a training on all rows moves the class prompt."""
    leaks = {}
    for rows in ("token and end", "all"):
        with pack("host.training").training_mode():
            run = started(base, concepts[:1], rows=rows, learning_rate=1e-2)
            leaks[rows] = [run.step(step).leak for step in range(4)]
            if rows == "all":
                noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)) * run.denoiser.middle_sigma
                with torch.no_grad():
                    prompt, sigma = run.prompts([concepts[0].class_prompt]), torch.tensor([run.denoiser.middle_sigma])
                    moved = run.denoiser.output(noise, sigma, prompt)
                    with run.learned.disabled():
                        still = run.denoiser.output(noise, sigma, prompt)
                    now = run._leak(0)
                assert now == pytest.approx(float((moved - still).norm() / still.norm()), rel=1e-3)
    assert leaks["token and end"] == [0.0] * 4
    assert leaks["all"][0] == leaks["all"][2] == 0.0 < leaks["all"][3]  # before the first step, and before the last
