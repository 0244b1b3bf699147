"""Case 36. The weak rows are known or the sides go apart: every family of the host against brute force, whatever memory is free."""

import re

import pytest
import torch
from kindred_testing import guidance_models as g
from kindred_testing import guidance_networks as networks
from kindred_testing import pack

NAMES = list(networks.ALL)
OMEGA = 0.3


@pytest.fixture(scope="module", params=NAMES)
def family(request):
    with torch.inference_mode():
        patcher = networks.model(request.param)
    return request.param, patcher


def declared(patcher) -> tuple[bool, str | None]:
    """(is the network's layout declared?, the pattern of its exceptions)"""
    kind, table = type(patcher.model.diffusion_model), pack("host.layouts").BATCH_FIRST
    name = f"{kind.__module__}.{kind.__qualname__}"
    return name in table, table.get(name)


def adapted(patcher, skip: str | None = None):
    """A clone with a LoRA on every linear layer, except those whose path matches `skip`."""
    generator, tuned = torch.Generator().manual_seed(1), patcher.clone()
    lora = g.comfy("comfy.weight_adapter").LoRAAdapter
    for path, layer in patcher.model.diffusion_model.named_modules():
        weight = getattr(layer, "weight", None)
        if weight is None or weight.ndim != 2 or isinstance(layer, torch.nn.Embedding) or (skip and re.search(skip, path)):
            continue
        up, down = (torch.randn(*shape, generator=generator) for shape in ((weight.shape[0], 2), (2, weight.shape[1])))
        up *= 0.4 * float(weight.norm()) / float((up @ down).norm())
        tuned.add_patches({f"diffusion_model.{path}.weight": lora(set(), (up, down, 2.0, None, None, None))}, 1.0)
    return tuned


def recorded(network, run) -> dict[str, list[torch.Tensor]]:
    """Path of each layer with weights -> its inputs while `run` runs."""
    seen, hooks = {}, []
    for path, part in network.named_modules():
        if list(part.parameters(recurse=False)) and not any(True for _ in part.children()):
            hooks.append(part.register_forward_pre_hook(lambda _, args, path=path: seen.setdefault(path, []).append(args[0].detach().clone())))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def test_the_declared_layouts_are_those_of_the_host(family):
    """Each layer's input in a batch of both prompts is its input with the one and its input with the other, in that order; or its path is an exception."""
    name, patcher = family
    known, pattern = declared(patcher)
    positive, negative = networks.prompts(name)

    def inputs(*lists):
        clone = patcher.clone()
        clone.set_model_sampler_cfg_function(lambda arguments: arguments["cond"])
        clone.add_wrapper_with_key(
            "calc_cond_batch",
            "some",
            lambda executor, model, conds, x, t, o: executor(model, [one if i in lists else None for i, one in enumerate(conds)], x, t, o),
        )
        options = {"steps": 1, "latent": networks.latent(name, patcher)}
        return recorded(patcher.model.diffusion_model, lambda: g.sample(clone, positive, negative, **options))

    both, first, second = inputs(0, 1), inputs(1), inputs(0)
    differing = {
        path
        for path, batches in both.items()
        if len(batches) != len(first[path])
        or any(
            len(x) != 4 or len(a) != 2 or not torch.allclose(x, torch.cat([a, b]), rtol=1e-3, atol=1e-3)
            for x, a, b in zip(batches, first[path], second[path], strict=True)
        )
    }
    if known:
        assert differing == {path for path in differing if pattern and re.search(pattern, path)}
    if pattern or not known:
        assert differing, "this network could be declared whole"


def test_every_declared_network_is_tried():
    """A line in the table that no test holds is not a promise."""
    tried = set()
    for name in NAMES:
        kind = type(networks.model(name).model.diffusion_model)
        tried.add(f"{kind.__module__}.{kind.__qualname__}")
    assert set(pack("host.layouts").BATCH_FIRST) <= tried


@pytest.mark.parametrize("layers", ["all", "declared"])
def test_families_are_exact_whatever_memory_is_free(family, layers, forwards):
    """Two pictures of one node, with memory for one batch and for single forwards: both are brute force's. In one batch only where that is declared."""
    name, patcher = family
    known, pattern = declared(patcher)
    if layers == "declared" and not pattern:
        pytest.skip("all layers are declared, or none")
    tuned = adapted(patcher, pattern if layers == "declared" else None)
    options = {"steps": 2, "cfg": 3.0, "scheduler": "simple", "latent": networks.latent(name, patcher)}
    positive, negative = networks.prompts(name)
    truth = g.sample(g.brute_force(tuned, patcher, OMEGA), positive, negative, **options)
    assert g.error(g.sample(tuned, positive, negative, **options), truth) > 1e-3, "CFG gives the same, so nothing is shown"
    ours = g.personalize(tuned, patcher, OMEGA)
    del forwards[:]
    assert g.error(g.sample(ours, positive, negative, **options), truth) < 1e-5
    batched = known and (layers == "declared" or not pattern)
    assert forwards == ([4] * 2 if batched else [2] * 4)
    assert g.error(g.sample(g.little_memory(ours), positive, negative, **options), truth) < 1e-5
