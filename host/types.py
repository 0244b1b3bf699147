"""What the pack uses of the host's MODEL, CLIP and VAE, as types for signatures. Imports nothing at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

# A CONDITIONING is a list of [tensor [B, rows, width], dict]; a token list has one list of (id or vector, weight) for each chunk,
# under the host's own name of the encoder.
Conditioning = list[list[Any]]
TokenLists = dict[str, list[list[tuple]]]


class Model(Protocol):
    """A MODEL: the host's patcher around a network. Whoever changes one clones it first."""

    model: torch.nn.Module
    model_options: dict[str, Any]
    patches: dict[str, list]
    load_device: torch.device

    def clone(self) -> Model:
        """A patcher of its own on the same network."""
        ...

    def add_patches(self, patches: dict[str, Any], strength_patch: float = 1.0, strength_model: float = 1.0) -> Any:
        """Put patches onto weights: strength_model * weight + strength_patch * patch."""
        ...

    def get_key_patches(self) -> dict[str, list]:
        """Weight key -> [(weight as it was loaded, its conversion), patch, ...]."""
        ...

    def model_size(self) -> int:
        """Bytes of the network's weights."""
        ...

    def get_model_object(self, name: str) -> Any:
        """The part of the network called `name`, patches included."""
        ...

    def get_additional_models_with_key(self, key: str) -> list[Model]:
        """The models that are loaded together with this one, put in under `key`."""
        ...

    def set_additional_models(self, key: str, models: list[Model]) -> None:
        """Load `models` together with this one."""
        ...

    def remove_additional_models(self, key: str) -> None:
        """Undo `set_additional_models`."""
        ...


class Clip(Protocol):
    """A CLIP: a tokenizer and text encoders behind a patcher."""

    patcher: Model
    cond_stage_model: torch.nn.Module
    tokenizer: Any
    layer_idx: int | None

    def clone(self) -> Clip:
        """A CLIP of its own on the same encoders."""
        ...

    def tokenize(self, text: str) -> TokenLists:
        """The prompt as chunks of (id or vector, weight) for each encoder."""
        ...

    def encode_from_tokens_scheduled(self, tokens: TokenLists) -> Conditioning:
        """The prompt's features, hooks and their schedules included."""
        ...


class Vae(Protocol):
    """A VAE: pictures [B, height, width, 3] in 0..1 to latents and back."""

    patcher: Model

    def encode(self, pixel_samples: torch.Tensor) -> torch.Tensor:
        """Pictures to latents."""
        ...

    def decode(self, samples_in: torch.Tensor) -> torch.Tensor:
        """Latents to pictures."""
        ...
