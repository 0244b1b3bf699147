"""The pair that most guidance tests draw with: the tiny SD 1.5, and the same module with a LoRA."""

from types import SimpleNamespace

import pytest
import torch
from kindred_testing import guidance_models as g
from kindred_testing import pack


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small tensors on a shared machine: a second thread mostly waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pair():
    base, clip = g.base_model()
    return SimpleNamespace(
        base=base,
        clip=clip,
        tuned=g.with_lora(base, g.lora(base, rank=4), 0.8),
        positive=g.encode(clip, "a photo of a dog"),
        negative=g.encode(clip, ""),
    )


@pytest.fixture(scope="session")
def truth(pair):
    """The pair at omega 0.3 by brute force."""
    return g.brute_force(pair.tuned, pair.base, 0.3)


@pytest.fixture(scope="session")
def guided(pair):
    """The pair at omega 0.3 by the pack."""
    return personalize(pair.tuned, pair.base, 0.3)


def personalize(model, base, omega, **course):
    return pack("guidance.guider").personalize(model, base, pack("guidance.schedule").Schedule(omega, **course))
