"""SDXL and v prediction: the same trainer on other families' real classes, against the host's own denoiser."""

import pytest
import torch
from kindred_testing import diffusion_families, guidance_families, pack, text_models
from kindred_testing.models import sd15

BLOCKS = ("blocks", "joint_blocks", "double_blocks", "single_blocks", "double_layers", "single_layers", "layers", "transformer_blocks")


@pytest.fixture(scope="module")
def concept():
    photos = torch.rand(3, 64, 64, 3, generator=torch.Generator().manual_seed(2))
    return pack("training.data.concept").make_concept([photos], "<v1>", "dog")


def v_prediction_model():
    """Stable Diffusion 2.x: OpenCLIP-H's width, linear projections, v prediction."""
    from comfy import model_base, model_patcher, supported_models

    config = supported_models.SD20(
        {**guidance_families.FAMILIES["SD15", "tiny"], "context_dim": 1024, "use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 64}
    )
    config.set_inference_dtype(torch.float32, None)
    with torch.inference_mode():
        module = model_base.BaseModel(config, model_type=model_base.ModelType.V_PREDICTION, device=torch.device("cpu"))
        guidance_families.fill(module.diffusion_model, torch.Generator().manual_seed(0))
        return model_patcher.CoreModelPatcher(module, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def sdxl_model():
    return guidance_families.random_model("SDXL")


@pytest.mark.parametrize(
    "make_model, make_text, encoders", [(sdxl_model, text_models.sdxl, ["clip_l", "clip_g"]), (v_prediction_model, text_models.sd2, ["clip_h"])]
)
def test_a_family_trains_and_predicts_as_the_host_does(make_model, make_text, encoders, concept):
    model, clip = make_model(), make_text()
    vae = sd15()[2]
    trainer, host = pack("training.trainer"), pack("host.training")
    with torch.inference_mode():
        result = trainer.train(model, clip, vae, [concept], trainer.TrainSettings(steps=3, resolution=64, learning_rate=1e-3))
    (token,) = result.tokens
    assert sorted(token.vectors) == sorted(encoders)
    for key in encoders:
        start = pack("host.text").input_embeddings(clip, key)[42170].float()
        assert not torch.equal(token.vectors[key][0], start)
    assert result.lora and all(difference.abs().max() > 0 for difference in result.lora.values())
    assert result.history[-1].spl < result.history[0].spl

    # eps or v against x0 = what the host's apply_model says, pooled and size conditionings included.
    with host.training_mode(), torch.no_grad():
        denoiser, text = pack("host.denoiser").TrainableDenoiser(model), pack("host.trainable_text").TrainableText(clip)
        latents, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
        conditioning, pooled, _ = text.encode(clip, "a photo of a dog")
        sampling = model.model.model_sampling
        sigma = sampling.sigmas[[40, 900]].view(-1, 1, 1, 1)
        prediction, target = denoiser.predict(latents, noise, sigma.view(-1), [(conditioning, pooled)] * 2)
        noisy = latents + noise * sigma
        given = {
            "cross_attn": conditioning,
            "device": torch.device("cpu"),
            "noise": noise,
            "width": 64,
            "height": 64,
            "prompt_type": "positive",
            "pooled_output": pooled,
        }
        rows = {name: condition.process_cond(batch_size=2).cond for name, condition in model.model.extra_conds(**given).items()}
        with torch.inference_mode():
            denoised = model.model.apply_model(noisy, sigma.view(-1), **rows)
        assert torch.allclose(sampling.calculate_denoised(sigma.view(-1), prediction, noisy), denoised, rtol=1e-4, atol=1e-4)
        # A network that said the target would denoise to the very latents.
        assert torch.allclose(sampling.calculate_denoised(sigma.view(-1), target, noisy), latents, rtol=1e-3, atol=2e-3)


def test_sd3_learns_tokens_of_all_three_encoders_through_its_own_text(concept):
    """The pieces that a run puts together: encode, predict, SPL; one vector for CLIP-L, CLIP-G and T5."""
    model, clip = diffusion_families.model("SD3"), text_models.sd3()
    host, text, losses = pack("host.training"), pack("host.text"), pack("training.losses")
    with host.training_mode():
        denoiser, encoder = pack("host.denoiser").TrainableDenoiser(model), pack("host.trainable_text").TrainableText(clip)
        vectors = pack("training.adapters.tokens").TokenVectors(clip, [concept], denoiser.device, encoders=["clip_l", "clip_g", "t5xxl"])
        carrying = text.carry_tokens(clip, vectors.carried())
        starts = {key: value.detach().clone() for key, value in vectors.parameters.items()}
        assert sorted(key for _, key in starts) == ["clip_g", "clip_l", "t5xxl"]
        with torch.no_grad():
            kind = encoder.eos_features(clip, concept.class_prompt)
        latents, noise, _ = diffusion_families.batch("SD3", model)
        sigma = denoiser.draw_sigmas(2, torch.Generator().manual_seed(4))
        optimizer, history = torch.optim.Adam(vectors.parameters.values(), lr=1e-3), []
        for _ in range(3):
            encoded = encoder.encode(carrying, concept.token_prompt)
            reconstruction = losses.reconstruction(*denoiser.predict(latents, noise, sigma, [encoded] * 2)).mean()
            spl = losses.semantic_preservation([losses.drift(encoder.eos_features(carrying, concept.token_prompt), kind)])
            optimizer.zero_grad()
            (reconstruction + spl).backward()
            optimizer.step()
            history.append((reconstruction.item(), spl.item()))
    assert all(not torch.equal(value, starts[key]) for key, value in vectors.parameters.items())
    assert history[-1][0] < history[0][0] and history[-1][1] < history[0][1], history


def wan_vae():
    """The autoencoder of films that Wan and Qwen-Image share, reduced: latents [n, 16, 1, h, w]."""
    from comfy.ldm.wan.vae import WanVAE
    from comfy.sd import VAE

    module = WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True])
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        return VAE(sd={key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in module.state_dict().items()})


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("name", ["Qwen-Image", "Wan"])
def test_models_of_videos_train_on_films_of_one_frame(name, batch_size, concept, monkeypatch):
    """Case 37. What reaches the network are the photos' own latents, one frame each: not a film that the host's scale was broadcast to."""
    model, clip, vae = diffusion_families.model(name), text_models.pixart(), wan_vae()
    trainer, host = pack("training.trainer"), pack("host.denoiser")
    seen, predict = [], host.TrainableDenoiser.predict
    monkeypatch.setattr(host.TrainableDenoiser, "predict", lambda self, latents, *rest: seen.append(latents.cpu()) or predict(self, latents, *rest))
    settings = trainer.TrainSettings(method="lora", steps=2, batch_size=batch_size, resolution=64, rank=2, spl_weight=0.0, augment=False, flip=False)
    with torch.inference_mode():
        result = trainer.train(model, clip, vae, [concept], settings)
        photos = [model.model.process_latent_in(vae.encode(photo[None])) for photo in concept.images]
    assert {tuple(latents.shape) for latents in seen} == {(batch_size, 16, 1, 8, 8)}
    rows = [row[None] for latents in seen for row in latents]
    assert all(min(float((row - photo).abs().max()) for photo in photos) < 1e-4 for row in rows)
    assert any(value.abs().max() > 0 for key, value in result.lora.items() if "lora_up" in key)


@pytest.mark.parametrize("name", [*diffusion_families.UNETS, *diffusion_families.FAMILIES])
def test_every_family_has_attention_layers_in_every_block(name):
    """Case 37, 3: HunyuanDiT had "no layer that 'attention' means. Choose 'attention'"."""
    network = diffusion_families.model(name).model.diffusion_model
    found = pack("training.adapters.layers").target_layers(network, "attention")
    blocks = [f"{attribute}.{index}." for attribute in BLOCKS for index, _ in enumerate(getattr(network, attribute, ()))]
    assert found and (blocks or name in diffusion_families.UNETS)
    assert [block for block in blocks if not any(layer.startswith(block) for layer in found)] == []


def test_layers_that_are_missing_are_refused_with_a_choice_that_works():
    layers = pack("training.adapters.layers")
    transformer = diffusion_families.model("Qwen-Image").model.diffusion_model
    with pytest.raises(ValueError, match=r"no layer that 'cross-attention' means. Choose 'attention' or"):
        layers.target_layers(transformer, "cross-attention")
    with pytest.raises(ValueError, match="no adapter"):
        layers.target_layers(torch.nn.Linear(4, 4), "attention")


def test_a_family_that_cannot_be_trained_is_named(concept):
    network = {"image_model": "hunyuan3d2", "in_channels": 64, "context_in_dim": 64, "hidden_size": 64, "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "guidance_embed": False}  # fmt: skip
    model, clip = diffusion_families.make("Hunyuan3Dv2", network), text_models.sd15()
    vae = sd15()[2]
    trainer = pack("training.trainer")
    with torch.inference_mode(), pytest.raises(ValueError, match=r"cannot train this model \(Hunyuan3Dv2, prediction FLOW\).*Supported:"):
        trainer.train(model, clip, vae, [concept], trainer.TrainSettings(steps=1, resolution=64))
