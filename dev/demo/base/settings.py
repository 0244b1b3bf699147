"""Every number of the base's training, in one place. Times are for 2 cores of a 2024 server with nothing else to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class Settings:
    """The settings that made the shipped weights. The larger edition changes ``size`` and the step counts, nothing else."""

    seed: int = 2026
    size: int = 64  # pixels; a multiple of 8

    # The pictures: rendered once, kept in memory as bytes (12 kB each at 64 px).
    scenes: int = 16_000
    strangers: float = 0.25  # share in two-tone coats that no caption names; the base must know that such coats exist

    # The autoencoder, TAESD's layout.
    vae_steps: int = 1_500
    vae_batch: int = 8
    vae_lr: float = 1.5e-3
    vae_muon: float = 2.5e-3  # kernels are moved by Muon: after 300 steps it was 2.3 dB ahead of AdamW
    vae_skip: tuple[int, ...] = (1, 4, 5)  # encoder blocks left as identities: the decoder is what is seen
    vae_skip_decoder: tuple[int, ...] = (14, 15, 18)  # two of three blocks at half size and the one at full size: half of its work
    vae_noise: float = 0.1  # added to latents of about unit size: the decoder learns to forgive the UNet's last errors
    vae_edges: float = 1.0  # weight of the loss on image gradients: outlines stay outlines

    # The text encoder: CLIP-L's layout, of whose twelve layers two work.
    text_layers: int = 2
    text_mlp: int = 1024  # of 3072 hidden units; the others stay exactly zero and cost nothing to store
    text_steps: int = 220
    text_batch: int = 96
    text_lr: float = 5e-4
    gram: float = 4.0  # weight of the loss that spreads captions apart

    # The UNet: one level of SD 1.5's, epsilon prediction on its schedule.
    unet_steps: int = 900
    unet_batch: int = 24
    unet_lr: float = 6e-4
    unet_muon: float = 2e-3
    unet_rest: tuple[str, ...] = ("middle_block.2", "output_blocks.1.0", "output_blocks.1.1")  # left as identities: a third of the work
    unet_ema: float = 0.998
    # Its second stage: from the first one's result, with the resting blocks woken.
    unet_more_steps: int = 1_600
    unet_more_lr: float = 3e-4
    unet_more_muon: float = 1e-3  # 0 = AdamW alone, for a processor that emulates bfloat16: see loop.Optimizers
    unet_more_flat: float = 0.35  # share of the steps before the rates begin to fall
    empty_captions: float = 0.1
    min_snr: float = 5.0

    # The judge, a small convolutional network that sees renders only.
    judge_steps: int = 3_600
    judge_batch: int = 64
    judge_lr: float = 2e-3

    def changed(self, pairs: list[str]) -> Settings:
        """A copy with "name=number" pairs applied. Raises ValueError for a name that does not exist."""
        known, new = self.as_dict(), {}
        for name, _, value in (pair.partition("=") for pair in pairs):
            if not isinstance(known.get(name), (int, float)):
                raise ValueError(f"--set {name!r}: no such number; the settings are {', '.join(known)}.")
            new[name] = type(known[name])(value)
        return replace(self, **new)

    def as_dict(self) -> dict:
        return asdict(self)
