"""Under every sampler and scheduler of the host, at the same number of forwards as CFG."""

import pytest
import torch
from kindred_testing import guidance_models as g


def sampler_names() -> list[str]:
    return list(g.comfy("comfy.samplers").SAMPLER_NAMES)


def test_every_sampler(pair, pairs):
    """All the host lists, CFG++ included. Some compound rounding more than others; still far from CFG."""
    ours, truth, _ = pairs["factors"]
    wrong = {}
    for name in sampler_names():
        options = {"steps": 2, "sampler": name, "scheduler": "karras", "cfg": 1.6 if "cfg_pp" in name else 5.0}
        if name == "dpm_adaptive":
            options["latent"], options["denoise"] = {"samples": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))}, 0.2
        expected = g.sample(truth, pair.positive, pair.negative, **options)
        error = g.error(g.sample(ours, pair.positive, pair.negative, **options), expected)
        if not error < 1e-4:
            wrong[name] = error
    assert not wrong


@pytest.mark.parametrize("scheduler", ["simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic", "kl_optimal"])
def test_every_scheduler(pair, pairs, scheduler):
    assert set(g.comfy("comfy.samplers").SCHEDULER_NAMES) == set(test_every_scheduler.pytestmark[0].args[1]), "the host lists other schedulers now"
    ours, truth, plain = pairs["factors"]
    expected = g.sample(truth, pair.positive, pair.negative, scheduler=scheduler, steps=3)
    assert g.error(g.sample(ours, pair.positive, pair.negative, scheduler=scheduler, steps=3), expected) < 1e-5
    assert g.error(g.sample(plain, pair.positive, pair.negative, scheduler=scheduler, steps=3), expected) > 1e-3


@pytest.mark.parametrize("way", ["factors", "second weights", "second module"])
def test_cfg_one_is_the_tuned_model_alone(pair, pairs, way):
    """The host's shortcut holds: no negative forward, bit for bit core's result."""
    ours, _, plain = pairs[way]
    ours_, plain_ = (g.sample(model, pair.positive, pair.negative, cfg=1.0) for model in (ours, plain))
    assert torch.equal(ours_, plain_)


def test_previews_show_the_guided_image(pair, pairs):
    """The callback that draws latent previews sees the same x0 as in brute force, at every step."""
    seen = []
    for model in pairs["factors"][:2]:
        steps = []
        with torch.inference_mode():
            noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
            g.comfy("comfy.sample").sample(
                model,
                noise,
                3,
                7.5,
                "euler",
                "normal",
                pair.positive,
                pair.negative,
                torch.zeros(1, 4, 8, 8),
                callback=lambda step, x0, x, total, steps=steps: steps.append(x0.clone()),
            )
        seen.append(steps)
    assert len(seen[0]) == 3
    assert all(g.error(ours, truth) < 1e-5 for ours, truth in zip(*seen, strict=True))


def test_one_forward_a_step(pair, pairs, forwards):
    """Not a forward more than CFG, and not a row more in it."""

    def counted(model):
        del forwards[:]
        g.sample(model, pair.positive, pair.negative, steps=4)
        return list(forwards)

    assert counted(pairs["factors"][0]) == counted(pairs["second weights"][0]) == counted(pair.tuned) == [2, 2, 2, 2]
    assert counted(pairs["second module"][0]) == [1] * 8
