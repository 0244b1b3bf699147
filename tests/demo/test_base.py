"""The base: a training loop that survives its end, and a stored file that becomes the checkpoint which the stock loader takes."""

import importlib
import os
import random
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from kindred_testing import host, start_host
from kindred_testing.models import load

DEMO = Path(__file__).resolve().parents[2] / "dev" / "demo"
if str(DEMO) not in sys.path:
    sys.path.append(str(DEMO))

from base import loop  # noqa: E402
from base.settings import Settings  # noqa: E402


def _module():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def _run(work, stop_at=None, steps=30):
    module, seen = _module(), []

    def loss(step):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        x = torch.randn(16, 4, generator=loop.generator(1, "test", step))
        value = (module(x) - x.sum(1, keepdim=True)).pow(2).mean()
        seen.append(value.item())
        return {"loss": value}

    loop.train("net", module, loss, steps, 1e-2, work, loop.Log(work / "log.jsonl"), every=10)
    return module, seen


@pytest.mark.skipif(threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread only")
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected, losses = _run(whole)
    with pytest.raises(loop.Stopped, match="stopped at step 13"):
        _run(broken, stop_at=12)
    assert (broken / "net.state.pt").is_file()
    found, rest = _run(broken)
    assert rest == losses[13:]
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), found.parameters(), strict=True))
    assert not (broken / "net.state.pt").exists()
    again, nothing = _run(broken)  # a finished stage is read, not trained again
    assert nothing == []
    assert torch.equal(again[0].weight, found[0].weight)


def test_a_nan_stops_before_it_does_harm(tmp_path):
    module = _module()
    before = module[0].weight.clone()
    with pytest.raises(FloatingPointError, match="nan at step 0"):
        loop.train("net", module, lambda step: {"loss": module(torch.ones(1, 4)).sum() * float("nan")}, 3, 1e-2, tmp_path, loop.Log(tmp_path / "log.jsonl"))
    assert torch.equal(module[0].weight, before)


def test_settings_can_be_changed_by_name_only():
    assert Settings().changed(["unet_steps=7"]).unet_steps == 7
    with pytest.raises(ValueError, match="'unet_step': no such number"):
        Settings().changed(["unet_step=7"])


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Untrained networks of the real layout, stored and expanded into the host's checkpoint folder."""
    start_host()
    from base import autoencoder, parts, storage

    with torch.inference_mode(False):
        torch.manual_seed(5)
        settings = Settings()
        vae, encoder, unet = parts.autoencoder(), parts.text_encoder(settings.text_layers, settings.text_mlp), parts.unet()
        autoencoder.skip(vae, settings)
        with torch.no_grad():
            for module in (vae, encoder, unet):
                for name, p in module.named_parameters():
                    if not p.any() and p.ndim > 1 and "taesd" not in name:
                        p.normal_(0, 0.02)  # what starts at zero: give it something to lose
        for module in (vae, encoder, unet):
            module.eval().requires_grad_(False)
        stored = storage.write(tmp_path_factory.mktemp("base") / "tiny.safetensors.xz", storage.compact(vae, encoder, unet, latent_std=0.8), preset=0)
        target = host.BASE / "models" / "checkpoints" / "untrained-miniature.safetensors"
        storage.expand(stored, target)
    yield vae, encoder, unet, stored, target
    target.unlink()


@pytest.mark.slow
def test_the_stock_loader_gives_back_the_networks_that_were_stored(networks, caplog):
    """Same text features, same latents and pictures, same noise prediction, up to 8-bit rounding; and no key missing or left over."""
    from base import captions, text

    vae, encoder, unet, _, target = networks
    with caplog.at_level("WARNING"):
        model, clip, host_vae = load(target)
    assert "missing" not in caplog.text.lower()
    assert "left over" not in caplog.text.lower()
    assert type(model.model).__name__ == "BaseModel"
    assert type(model.model.latent_format).__name__ == "SD15"
    prompt = "a photo of a red dog wearing a hat on the beach"
    with torch.inference_mode():
        ours = text.features(encoder, [captions.ids(prompt)], torch.device("cpu"))
        theirs = clip.encode_from_tokens(clip.tokenize(prompt))
        assert torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min() > 0.995
        picture = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(3))
        latent = host_vae.encode(picture) * 0.18215
        expected = vae.taesd_encoder(picture.movedim(-1, 1)) / 0.8
        assert torch.allclose(latent, expected, atol=0.03 * expected.std().item())
        decoded = host_vae.decode(latent / 0.18215)
        assert (decoded - vae.taesd_decoder(expected * 0.8).clamp(0, 1).movedim(1, -1)).abs().max() < 0.02
        x, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4)), torch.tensor([900.0, 100.0])
        predicted = unet(x, t, context=ours.expand(2, -1, -1))
        import comfy.model_management

        comfy.model_management.load_models_gpu([model])
        hosted = model.model.diffusion_model(x.to(model.model.get_dtype()), t, context=ours.expand(2, -1, -1).to(model.model.get_dtype())).float()
    assert (hosted - predicted).pow(2).mean().sqrt() < 0.03 * predicted.std()


@pytest.mark.slow
def test_a_second_stage_starts_from_what_is_stored(networks):
    """The stored weights fill the training's networks up to 8-bit rounding; woken blocks change no output until they have learned something."""
    from base import parts, storage, unet

    _, encoder, network, stored, _ = networks
    resting = Settings().unet_rest
    with torch.inference_mode(False):
        model, text = parts.unet(), parts.text_encoder(Settings().text_layers, Settings().text_mlp)
        storage.fill(stored, encoder=text, unet=model)
        for filled, original in ((model, network), (text, encoder)):
            for key, value in original.state_dict().items():
                error = (filled.state_dict()[key] - value).abs().max()
                assert error <= 0.01 * value.abs().max() + 1e-6, key
        unet.rest(model, resting)
        x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 77, 768)
        before = model(x, t, context=context).detach()
        unet.wake(model, resting)
        after = model(x, t, context=context)
        assert torch.allclose(before, after, atol=1e-5)
        after.pow(2).mean().backward()
        for name in resting:
            gradients = {key: p.grad for key, p in model.get_submodule(name).named_parameters()}
            last = next(key for key in ("out_layers.3.weight", "proj_out.weight") if key in gradients)
            assert gradients[last].abs().max() > 0, name
            assert any(p.any() for key, p in model.get_submodule(name).named_parameters() if key != last), name


@pytest.mark.slow
def test_a_damaged_store_is_refused(networks, tmp_path):
    from base import storage

    data = bytearray(networks[3].read_bytes())
    broken = tmp_path / "broken.safetensors.xz"
    data[len(data) // 2] ^= 1
    broken.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="is damaged"):
        storage.expand(broken, tmp_path / "out.safetensors")
    broken.write_bytes(bytes(data[: len(data) // 3]))
    with pytest.raises(ValueError, match="is damaged"):
        storage.expand(broken, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_the_shipped_base_draws_what_its_prompts_say():
    """Through the stock nodes, combinations it has never been shown, read by the judge."""
    start_host()
    from base import storage
    from base.judge import STORED, Judge
    from world import scene

    nodes = importlib.import_module("nodes")
    target = host.BASE / "models" / "checkpoints" / "shipped-miniature.safetensors"
    storage.expand(DEMO / "base" / "miniature.safetensors.xz", target)  # checks the hash
    model, clip, vae = load(target)
    combos = random.Random(6).sample(sorted(scene.held_out()), 8)
    with torch.inference_mode():
        positive = [[torch.cat([nodes.CLIPTextEncode().encode(clip, scene.caption(*combo))[0][0][0] for combo in combos]), {}]]
        negative, latent = nodes.CLIPTextEncode().encode(clip, "")[0], nodes.EmptyLatentImage().generate(64, 64, len(combos))[0]
        done = nodes.KSampler().sample(model, 3, 12, 5.0, "dpmpp_2m", "karras", positive, negative, latent)[0]
        pictures = nodes.VAEDecode().decode(vae, done)[0].movedim(-1, 1).float()
    right = Judge.load(STORED).right(pictures, [dict(zip(scene.ATTRIBUTES, combo, strict=True)) for combo in combos])
    target.unlink()
    for attribute in scene.ATTRIBUTES:
        assert sum(r[attribute] for r in right) >= 6, (attribute, right)


def test_eight_bits_round_to_the_nearest_of_their_row():
    from base import storage

    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 1, 16)[:, None]
    values, scale = storage.quantise(weight)
    error = (storage.dequantise(values, scale).float() - weight).abs().amax(1)
    assert (error <= 0.51 * scale.float() + 1e-3 * weight.abs().amax(1)).all()
