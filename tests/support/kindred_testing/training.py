"""What a training has done, measured on noise, time steps and uncut photos that it never saw."""

from __future__ import annotations

import contextlib

import torch

from .host import pack


def held_out_loss(model, clip, vae, token, concept, resolution: int = 64) -> float:
    """The mean reconstruction loss of `concept`'s photos under `model` when prompts name `token` (a LearnedToken)."""
    host, losses, dataset = pack("host.training"), pack("training.losses"), pack("training.data.dataset")
    carrying = pack("host.text").carry_tokens(clip, [token])
    data = dataset.Dataset([concept], resolution, 5, 2, seed=991, augment=False)
    with host.training_mode(), torch.no_grad():
        data.encode(lambda pixels: vae.encode(pixels))
        text, denoiser = pack("host.trainable_text").TrainableText(clip), pack("host.denoiser").TrainableDenoiser(model)
        _on_token_rows(model, denoiser.network)
        total, generator = 0.0, torch.Generator().manual_seed(5)
        for step in range(2):
            batch = data.batch(step)
            latents = denoiser.latents(batch.latents)
            noise = torch.randn(latents.shape, generator=generator)
            sigma = denoiser.draw_sigmas(len(latents), generator)
            prompts = {prompt: text.encode(carrying, prompt) for prompt in set(batch.prompts)}
            prediction, target = denoiser.predict(latents, noise, sigma, [prompts[prompt] for prompt in batch.prompts])
            total += losses.reconstruction(prediction, target, batch.masks).mean().item()
    return total / 2


def _on_token_rows(model, network) -> None:
    """Give the training copy `network` what `model` does on its tokens' rows, which is otherwise there only while the host samples."""
    rows, on_token_rows = pack("host.token_rows"), pack("training.adapters.side").on_token_rows
    for difference in rows.differences(model):
        for key, patch in difference.patches.items():
            delta = rows._delta(model, key, patch, torch.device("cpu"))
            layer = network.get_submodule(key.removeprefix("diffusion_model.").removesuffix(".weight"))
            layer.register_forward_hook(lambda _, args, y, delta=delta: on_token_rows(args[0], y, lambda x, y: y + x @ delta.t()))


def untrained_token(clip):
    """`<v1>` as training begins: the papers' rare token `ktn`."""
    start = pack("host.text").input_embeddings(clip, "clip_l")[42170].float().clone()[None]
    return pack("formats.token").LearnedToken("<v1>", "dog", {"clip_l": start})


def beyond_limits(settings, **values):
    """`settings` with values that nobody can enter: they reach within a few steps what may happen to a long run."""
    for name, value in values.items():
        object.__setattr__(settings, name, value)
    return settings


@contextlib.contextmanager
def saved_bytes(network):
    """Bytes that autograd keeps for the backward pass, the network's own weights left out."""
    own = {value.untyped_storage().data_ptr() for value in network.parameters()}
    kept: dict[int, int] = {}
    hold = []

    def pack_tensor(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            hold.append(storage)  # so that no other tensor gets this address meanwhile
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_tensor, lambda tensor: tensor):
        yield lambda: sum(kept.values())
