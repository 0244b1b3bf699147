"""The pair that most guidance tests draw with: the tiny SD 1.5, and the same module with a LoRA."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from kindred_testing import guidance_models as g


@contextmanager
def single_thread():
    """Small tensors on a shared machine: a second thread mostly waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    with single_thread():
        yield


@pytest.fixture
def forwards(monkeypatch):
    """The rows of each forward of the host, in order. Counted below all wrappers and outside of the network, where no node of another pack would be."""
    rows, kind = [], g.comfy("comfy.model_base").BaseModel
    below = kind._apply_model
    monkeypatch.setattr(kind, "_apply_model", lambda self, x, *args, **kwargs: (rows.append(len(x)), below(self, x, *args, **kwargs))[1])
    return rows


@pytest.fixture(scope="session")
def pair():
    with single_thread():  # made before the fixture above
        base, clip = g.base_model()
        return SimpleNamespace(
            base=base,
            clip=clip,
            tuned=g.with_lora(base, g.lora(base, rank=4), 0.8),
            positive=g.encode(clip, "a photo of a dog"),
            negative=g.encode(clip, ""),
        )


@pytest.fixture(scope="session")
def pairs(pair):
    """The three ways that guidance works in: factors, second weights, second module. (ours, truth, plain) at omega 0.3."""
    with single_thread():
        whole = g.with_lora(pair.base, g.lora(pair.base, kind="diff", seed=31), 0.8)
        other = g.with_lora(g.with_state(pair.base, g.merged_state(g.with_lora(pair.base, all_weights(pair.base), 1.0))), g.lora(pair.base, seed=32), 0.5)
        return {
            name: (g.personalize(tuned, pair.base, 0.3), g.brute_force(tuned, pair.base, 0.3), tuned)
            for name, tuned in (("factors", pair.tuned), ("second weights", whole), ("second module", other))
        }


def all_weights(base) -> dict:
    return {
        **g.lora(base, kind="diff", size=0.5),
        **{
            f"diffusion_model.{name}.diff": torch.randn(value.shape, generator=torch.Generator().manual_seed(2)) * 0.02
            for name, value in ((key.removesuffix(".weight"), value) for key, value in base.model.diffusion_model.state_dict().items() if value.ndim == 4)
        },
    }
