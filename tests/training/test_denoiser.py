"""Every family that is trained: what it predicts, that it learns, and what its backward pass keeps, on the host's own classes."""

import contextlib
import weakref

import pytest
import torch
from kindred_testing import diffusion_families, guidance_models, host_version, pack
from kindred_testing.guidance_models import comfy
from kindred_testing.training import saved_bytes

TRANSFORMERS = list(diffusion_families.FAMILIES)
ALL = [*diffusion_families.UNETS, *TRANSFORMERS]


@contextlib.contextmanager
def training(name, **options):
    """(patcher, denoiser, latents, noise, sigma, prompts) in the host's training mode."""
    patcher = diffusion_families.model(name, **options)
    with pack("host.training").training_mode():
        latents, noise, prompts = diffusion_families.batch(name, patcher)
        denoiser = pack("host.denoiser").TrainableDenoiser(patcher, latents.shape)
        yield patcher, denoiser, latents, noise, denoiser.draw_sigmas(2, torch.Generator().manual_seed(11)), prompts


def state(patcher) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in patcher.model.diffusion_model.state_dict().items()}


def attention_weights(network) -> list[torch.nn.Parameter]:
    """The attention's weights as parameters of their own, to be trained."""
    trained = []
    for name, module in network.named_modules():
        if ".attn" in name or "attention" in name or "_attn." in name or "single_" in name:
            for key, value in list(module.named_parameters(recurse=False)):
                if key == "weight" and value.ndim == 2:
                    setattr(module, key, torch.nn.Parameter(value.detach().clone()))
                    trained.append(getattr(module, key))
    return trained


@pytest.mark.parametrize("name", ALL)
def test_the_prediction_and_its_target_are_the_hosts(name):
    """Against `apply_model`, row by row: the denoised picture that follows from the prediction; the target denoises to the very latents."""
    with training(name) as (patcher, denoiser, latents, noise, sigma, prompts), torch.no_grad():
        prediction, target = denoiser.predict(latents, noise, sigma, prompts)
    model, sampling = patcher.model, patcher.get_model_object("model_sampling")
    with torch.inference_mode():
        for row, (conditioning, pooled, extras) in enumerate(prompts):
            here = slice(row, row + 1)
            noisy = sampling.noise_scaling(sigma[here], noise[here], latents[here])
            scale = model.latent_format.spacial_downscale_ratio
            given = {"cross_attn": conditioning, "device": torch.device("cpu"), "noise": noise[here], "prompt_type": "positive", **extras}
            given |= {"width": latents.shape[-1] * scale, "height": latents.shape[-2] * scale, "pooled_output": pooled}
            rows = {key: value.process_cond(batch_size=1, area=None).cond for key, value in model.extra_conds(**given).items()}
            expected = model.apply_model(noisy, sigma[here], **rows)
            denoised = sampling.calculate_denoised(sigma[here], prediction[here], noisy)
            assert torch.allclose(denoised, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
            assert torch.allclose(sampling.calculate_denoised(sigma[here], target[here], noisy), latents[here], rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("name", ALL)
def test_it_learns_and_checkpointing_changes_nothing_but_memory(name):
    reconstruction = pack("training.losses").reconstruction
    with training(name) as (patcher, denoiser, latents, noise, sigma, prompts):
        before = state(patcher)
        trained = attention_weights(denoiser.network)
        assert trained and sum(value.requires_grad for value in denoiser.network.parameters()) == len(trained)
        older = host_version() < (0, 30)  # which ask for gradients of the weights that they load
        assert older or not any(value.requires_grad for value in patcher.model.diffusion_model.parameters())

        def gradients() -> tuple[list[torch.Tensor], int]:
            prompts[0][0].requires_grad_()
            with saved_bytes(denoiser.network) as saved:
                loss = reconstruction(*denoiser.predict(latents, noise, sigma, prompts)).mean()
            return list(torch.autograd.grad(loss, [*trained, prompts[0][0]], allow_unused=True)), saved()

        plain, kept = gradients()
        assert plain[-1].abs().max() > 0, "no gradient reaches the prompt"
        assert sum(value is None for value in plain) <= 4  # Qwen-Image's last block computes text that nothing reads
        assert pack("host.checkpointing").gradient_checkpointing(denoiser.network) >= 2
        again, kept_less = gradients()
        assert kept_less < 0.6 * kept, (kept_less, kept)
        assert all((a is None and b is None) or (a - b).norm() <= 1e-6 * a.norm() for a, b in zip(plain, again, strict=True))

        optimizer, losses = torch.optim.Adam(trained, lr=2e-3), []
        for _ in range(4):
            loss = reconstruction(*denoiser.predict(latents, noise, sigma, prompts)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.97 * losses[0], losses
    assert all(torch.equal(value, before[key]) for key, value in state(patcher).items())


@pytest.mark.parametrize("name, stored", [("SD15", torch.bfloat16), ("Flux", torch.float8_e4m3fn), ("SD3", torch.float16)], ids=str)
def test_weights_that_are_cast_at_each_call_are_not_kept(name, stored):
    """fp8 or offloaded weights: the gradient of the same values in float32, and no cast copy of the model until the backward pass."""
    results = []
    with training(name, dtype=stored, compute=torch.float32) as (patcher, denoiser, latents, noise, sigma, prompts):
        assert denoiser.dtype == torch.float32 and {value.dtype for value in denoiser.network.parameters()} == {stored}
        plain = diffusion_families.model(name)
        with torch.inference_mode():
            plain.model.diffusion_model.load_state_dict(patcher.model.diffusion_model.state_dict())
        weights = sum(value.numel() * 4 for value in denoiser.network.parameters())
        for one in (denoiser, pack("host.denoiser").TrainableDenoiser(plain)):
            given = [(conditioning.clone().requires_grad_(), *rest) for conditioning, *rest in prompts]
            with saved_bytes(one.network) as saved:
                loss = (one.predict(latents, noise, sigma, given)[0] ** 2).mean()
            results.append((torch.autograd.grad(loss, given[0][0])[0], saved()))
    (ours, kept), (expected, kept_plain) = results
    assert (ours - expected).norm() / expected.norm() < 1e-5
    assert kept < kept_plain + 0.1 * weights, (kept, kept_plain, weights)


def test_a_trained_function_of_a_weight_keeps_its_gradient():
    """The host's own adapters may stand in `weight_function`: a cast layer must not hide them from autograd."""
    with training("SD15", dtype=torch.bfloat16, compute=torch.float32) as (_, denoiser, latents, noise, sigma, prompts):
        layer = next(module for name, module in denoiser.network.named_modules() if name.endswith("attn2.to_k"))
        scale = torch.nn.Parameter(torch.ones(()))
        layer.weight_function = [lambda weight: weight * scale]
        prediction, target = denoiser.predict(latents, noise, sigma, prompts)
        ((prediction - target) ** 2).mean().backward()
        assert scale.grad.abs() > 0


def test_a_quantised_base_stays_quantised_and_passes_gradients_on():
    plain = diffusion_families.model("SD15")
    patcher = guidance_models.reload(guidance_models.quantised(guidance_models.merged_state(plain)))
    quant = comfy("comfy.quant_ops").QuantizedTensor
    latents, noise, prompts = diffusion_families.batch("SD15", patcher)
    with pack("host.training").training_mode():
        denoiser = pack("host.denoiser").TrainableDenoiser(patcher)
        assert any(isinstance(value, quant) for value in denoiser.network.parameters())
        reference = pack("host.denoiser").TrainableDenoiser(plain)
        gradients = []
        for one in (denoiser, reference):
            given = [(conditioning.clone().requires_grad_(), *rest) for conditioning, *rest in prompts]
            prediction, target = one.predict(latents, noise, torch.tensor([0.5, 3.0]), given)
            gradients.append(torch.autograd.grad(((prediction - target) ** 2).mean(), given[0][0])[0].flatten())
        assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.9


def test_noise_levels_are_drawn_as_the_papers_say():
    def draw(name, distribution="auto", count=4000, seed=1):
        with training(name) as (_, denoiser, *_rest):
            return denoiser.draw_sigmas(count, torch.Generator().manual_seed(seed), distribution), denoiser

    sigmas, denoiser = draw("SD15")
    schedule = denoiser.sampling.sigmas
    steps = torch.tensor([int((schedule == sigma).nonzero()) for sigma in sigmas])  # every one is of the discrete schedule
    assert abs(steps.float().mean() - 499.5) < 20 and steps.min() < 10 and steps.max() > 989
    assert torch.allclose(denoiser.snr(sigmas), (1 / sigmas.double() ** 2).float())
    assert torch.equal(draw("SD15")[0], sigmas) and not torch.equal(draw("SD15", seed=2)[0], sigmas)

    sigmas, denoiser = draw("SD3")
    t = sigmas.double() / (3 - 2 * sigmas.double())  # SD 3's shift of 3, solved for t
    logit = torch.log(t / (1 - t))
    assert abs(logit.mean()) < 0.06 and abs(logit.std() - 1) < 0.05
    alpha = 1 - sigmas.double()
    assert torch.allclose(denoiser.snr(sigmas).double(), alpha**2 / sigmas.double() ** 2, rtol=1e-3)
    t = draw("SD3", "uniform")[0].double()
    t = t / (3 - 2 * t)
    assert abs(t.mean() - 0.5) < 0.02 and abs(t.std() - 12**-0.5) < 0.01
    with pytest.raises(ValueError, match="'auto', 'uniform' or 'logit-normal'"):
        draw("SD3", "cosine")


def test_what_cannot_be_trained_is_named_with_what_can():
    supported = pack("host.denoiser").supported_family
    assert supported(diffusion_families.model("SDXL")) == "SDXL" and supported(diffusion_families.model("Wan")) == "Wan 2.1"
    cascade = diffusion_families.make("Hunyuan3Dv2", {"image_model": "hunyuan3d2", "in_channels": 64, "context_in_dim": 64, "hidden_size": 64, "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "guidance_embed": False})  # fmt: skip
    with pytest.raises(ValueError, match=r"cannot train this model \(Hunyuan3Dv2, prediction FLOW\).*Supported: Stable Diffusion 1.x.*Flux"):
        supported(cascade)
    inpainting = diffusion_families.make("Flux", {**diffusion_families.FAMILIES["Flux"].network, "in_channels": 96})
    with pytest.raises(ValueError, match="inpainting or editing model"):
        supported(inpainting)
    lcm = comfy("comfy_extras.nodes_model_advanced").ModelSamplingDiscrete().patch(diffusion_families.model("SD15"), "lcm", False)[0]
    with pytest.raises(ValueError, match="cannot train this model"):
        supported(lcm)


def test_nothing_of_a_run_stays_behind():
    host, patcher = pack("host.training"), diffusion_families.model("SD15")
    latents, noise, prompts = diffusion_families.batch("SD15", patcher)
    with host.training_mode():
        denoiser = pack("host.denoiser").TrainableDenoiser(patcher, latents.shape, checkpointing=True)
        (trained, *_) = attention_weights(denoiser.network)
        prediction, target = denoiser.predict(latents, noise, torch.tensor([0.5, 3.0]), prompts)
        ((prediction - target) ** 2).mean().backward()
        left = [weakref.ref(denoiser.network), weakref.ref(trained), weakref.ref(trained.grad)]
    del denoiser, trained, prediction, target
    host.free_memory_after_run()
    assert [ref() for ref in left] == [None] * 3
    assert host.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory")) and not host.is_out_of_memory(ValueError("no"))
    assert not comfy("comfy.model_management").in_training


def test_pictures_for_a_video_model_are_encoded_as_pictures():
    """Qwen-Image and Wan share an autoencoder of films: each picture must become a film of one frame, whatever stands beside it."""
    wan = comfy("comfy.ldm.wan.vae").WanVAE(dim=8, z_dim=16, dim_mult=[1, 2, 4, 4], num_res_blocks=2, attn_scales=[], temperal_downsample=[False, True, True])
    generator = torch.Generator().manual_seed(0)
    state = {key: torch.randn(value.shape, generator=generator) * 0.1 for key, value in wan.state_dict().items()}
    with torch.inference_mode():
        vae = comfy("comfy.sd").VAE(sd=state)
        pixels = torch.rand(3, 32, 32, 3, generator=generator)
        together = pack("host.training").encode_pictures(vae, pixels)
        assert together.shape == (3, 16, 1, 4, 4)
        assert torch.allclose(together[2:], vae.encode(pixels[2:]), atol=1e-5) and not torch.allclose(together[:1], together[1:2], atol=1e-3)
        assert vae.encode(pixels).shape[0] == 1  # what a plain call makes of a batch
