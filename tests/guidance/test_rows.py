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
    """(is the network's layout declared?, the pattern of its exceptions if it has such layers)"""
    network, table = patcher.model.diffusion_model, pack("host.batch_rows").BATCH_FIRST
    name = f"{type(network).__module__}.{type(network).__qualname__}"
    pattern = table.get(name)
    return name in table, pattern if pattern and any(re.search(pattern, path) for path, _ in network.named_modules()) else None


def adapted(patcher, skip: str | None = None):
    """A clone with a LoRA on every linear layer, except those whose path matches `skip`."""
    generator, tuned = torch.Generator().manual_seed(1), patcher.clone()
    lora = g.comfy("comfy.weight_adapter").LoRAAdapter
    for path, layer in patcher.model.diffusion_model.named_modules():
        if not isinstance(layer, torch.nn.Linear) or (skip and re.search(skip, path)):
            continue
        weight = layer.weight
        up, down = (torch.randn(*shape, generator=generator) for shape in ((weight.shape[0], 2), (2, weight.shape[1])))
        up *= 0.4 * float(weight.norm()) / float((up @ down).norm())
        tuned.add_patches({f"diffusion_model.{path}.weight": lora(set(), (up, down, 2.0, None, None, None))}, 1.0)
    return tuned


def recorded(network, run) -> dict[str, list[torch.Tensor]]:
    """Path of each layer with weights -> its inputs while `run` runs."""
    seen, hooks = {}, []
    for path, part in network.named_modules():
        if list(part.parameters(recurse=False)) and not any(True for _ in part.children()):
            hooks.append(
                part.register_forward_pre_hook(lambda _, args, path=path: seen.setdefault(path, []).append(args[0].detach().clone()) if args else None)
            )
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
    assert set(pack("host.batch_rows").BATCH_FIRST) <= tried


def test_families_are_exact_whatever_memory_is_free(family, forwards):
    """Two pictures of one node, with memory for one batch and for single forwards: both are brute force's. In one batch only where that is declared."""
    name, patcher = family
    known, pattern = declared(patcher)
    check_both_memories(name, patcher, adapted(patcher), forwards, batched=known and not pattern)
    if pattern:  # a network with undeclared layers, of which none is tuned
        check_both_memories(name, patcher, adapted(patcher, pattern), forwards, batched=True)


def check_both_memories(name, patcher, tuned, forwards, batched: bool) -> None:
    options = {"steps": 2, "cfg": 3.0, "scheduler": "simple", "latent": networks.latent(name, patcher)}
    positive, negative = networks.prompts(name)
    truth = g.sample(g.brute_force(tuned, patcher, OMEGA), positive, negative, **options)
    plain = g.sample(tuned, positive, negative, **options)
    assert g.error(plain, truth) > 1e-3, "CFG gives the same, so nothing is shown"
    rounding = g.error(g.sample(g.little_memory(tuned), positive, negative, **options), plain)  # of the host itself: 2e-5 for SVD, whose sigma begins at 700
    ours = g.personalize(tuned, patcher, OMEGA)
    del forwards[:]
    assert g.error(g.sample(ours, positive, negative, **options), truth) < max(1e-5, rounding)
    assert forwards == ([4] * 2 if batched else [2] * 4)
    assert g.error(g.sample(g.little_memory(ours), positive, negative, **options), truth) < max(1e-5, rounding)


def picture(model, name, patcher, rows=2):
    positive, negative = networks.prompts(name)
    return g.sample(model, positive, negative, steps=2, cfg=3.0, scheduler="simple", latent=networks.latent(name, patcher, rows))


def test_a_number_that_fits_by_chance_is_not_taken_for_the_rows():
    """Two frames first, and two rows in the batch: the table decides, not the size."""
    patcher = networks.model("Cosmos 1")
    tuned = adapted(patcher)
    truth = picture(g.brute_force(tuned, patcher, OMEGA), "Cosmos 1", patcher, rows=1)
    assert g.error(picture(g.personalize(tuned, patcher, OMEGA), "Cosmos 1", patcher, rows=1), truth) < 1e-5
    assert g.error(picture(tuned, "Cosmos 1", patcher, rows=1), truth) > 1e-3


def test_other_rows_in_mid_forward_part_the_sides(monkeypatch, forwards, caplog):
    """A network that does not keep what is declared: the forward is given up, and each side gets its own from then on."""
    patcher = networks.model("HunyuanDiT")
    tuned, table = adapted(patcher), pack("host.batch_rows").BATCH_FIRST
    truth = picture(g.brute_force(tuned, patcher, OMEGA), "HunyuanDiT", patcher)
    monkeypatch.setitem(table, "comfy.ldm.hydit.models.HunYuanDiT", None)
    del forwards[:]
    with caplog.at_level("INFO"):
        assert g.error(picture(g.personalize(tuned, patcher, OMEGA), "HunyuanDiT", patcher), truth) < 1e-5
    assert forwards == [4, 2, 2, 2, 2]
    assert "because a layer was given 1024 rows in a batch of 4" in caplog.text


@pytest.mark.parametrize("node, batched", [("FreeU_V2", True), ("PerturbedAttentionGuidance", True), ("HyperTile", False)])
def test_nodes_of_the_host_keep_the_batch(pair, forwards, node, batched):
    """Those of the host itself are known; only the one that makes rows of tiles parts the sides."""
    inputs = {
        "FreeU_V2": {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
        "PerturbedAttentionGuidance": {"scale": 2.0},
        "HyperTile": {"tile_size": 1, "swap_size": 1, "max_depth": 0, "scale_depth": False},
    }[node]
    model = g.node(node, model=g.personalize(pair.tuned, pair.base, OMEGA), **inputs)[0]
    del forwards[:]
    g.sample(model, pair.positive, pair.negative, steps=1)
    assert forwards[0] == (2 if batched else 1)
