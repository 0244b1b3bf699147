"""Case 57. Weights that only their own loader can read (GGUF): guidance needs none of them, or refuses before the run."""

import pytest
import torch
from kindred_testing import guidance_models as g

OMEGA = 0.3


class Packed(torch.Tensor):
    """Bytes of a weight that claims the weight's shape; its patches ride on it and are applied when it is unpacked, as ComfyUI-GGUF does."""

    @staticmethod
    def of(weight):
        scale = float(weight.abs().max()) / 127
        data = torch.cat([torch.zeros(len(weight), 2, dtype=torch.uint8), ((weight / scale).round() + 128).to(torch.uint8)], 1)
        return data.as_subclass(Packed)._tell(weight.shape, scale)

    def _tell(self, shape, scale, patches=()):
        self.of_shape, self.scale, self.patches = shape, scale, list(patches)
        return self

    def to(self, *args, **kwargs):
        return super().to(*args, **kwargs)._tell(self.of_shape, self.scale, self.patches)

    def clone(self, *args, **kwargs):
        return self

    def detach(self, *args, **kwargs):
        return self

    @property
    def shape(self):
        return getattr(self, "of_shape", None) or self.size()


def unpack(weight):
    return (weight.as_subclass(torch.Tensor)[:, 2:].float() - 128) * weight.scale


def packed_layer():
    """A layer of another pack's own class, of the host's kind."""
    host = g.comfy("comfy.ops").manual_cast.Linear

    class PackedLinear(host):
        def forward_comfy_cast_weights(self, x):
            weight = self.weight
            if not isinstance(weight, Packed):
                return super().forward_comfy_cast_weights(x)
            value = unpack(weight)
            for patches, key in weight.patches:
                value = g.comfy("comfy.lora").calculate_weight(patches, value, key)
            return torch.nn.functional.linear(x, value.to(x), self.bias)

        def _save_to_state_dict(self, destination, prefix, keep_vars):
            super()._save_to_state_dict(destination, prefix, keep_vars)
            destination[prefix + "temp.weight"] = torch.empty(1, device="meta")  # room for unpacking, which the host counts

    return PackedLinear


def packed(model):
    """(a model of the pack with its own patcher class, the plain model of the same weights)"""
    state = g.merged_state(model)
    plain = g.with_state(model, state)
    kind = packed_layer()

    class PackedPatcher(type(model)):
        def patch_weight_to_device(self, key, device_to=None, inplace_update=False, **kwargs):
            weight = g.comfy("comfy.utils").get_attr(self.model, key)
            if not isinstance(weight, Packed) or key not in self.patches:
                return super().patch_weight_to_device(key, device_to, inplace_update, **kwargs)
            weight.patches = [(self.patches[key], key)]
            return None

        def unpatch_model(self, device_to=None, unpatch_weights=True):
            for weight in self.model.parameters():
                if unpatch_weights and isinstance(weight, Packed):
                    weight.patches = []
            return super().unpatch_model(device_to, unpatch_weights)

        def load(self, *args, **kwargs):
            return super().load(*args, **{**kwargs, "force_patch_weights": True})

    with torch.inference_mode():
        out = g.with_state(model, state)
        for path, layer in out.model.diffusion_model.named_modules():
            if isinstance(layer, torch.nn.Linear) and ".attn" in path:
                layer.__class__, weight = kind, Packed.of(layer.weight)
                plain.model.diffusion_model.get_submodule(path).weight = torch.nn.Parameter(unpack(weight), requires_grad=False)
                layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        out.__class__ = PackedPatcher
    return out, plain


@pytest.fixture(scope="module")
def models(pair):
    return packed(pair.base)


def draw(pair, model):
    return g.sample(model, pair.positive, pair.negative, steps=2)


@pytest.mark.parametrize("kind", ["lora", "lokr", "diff"])
def test_what_adds_to_a_packed_weight_is_exact(pair, models, kind):
    """LoRAs, and K/V differences: the difference is at hand without the weight."""
    model, plain = models
    state = g.lora(plain, kind=kind, only="attn2.to_" if kind == "diff" else "attn")
    tuned, plainly = g.with_lora(model, state, 0.8), g.with_lora(plain, state, 0.8)
    truth = draw(pair, g.brute_force(plainly, plain, OMEGA))
    assert g.error(draw(pair, tuned), draw(pair, plainly)) < 1e-5
    assert g.error(draw(pair, g.personalize(tuned, model, OMEGA)), truth) < 1e-5
    assert g.error(draw(pair, plainly), truth) > 1e-3


@pytest.mark.parametrize("kind", ["dora", "oft"])
def test_what_multiplies_a_packed_weight_is_refused(models, kind):
    model, plain = models
    tuned = g.with_lora(model, g.lora(plain, kind=kind, only="attn"), 0.8)
    with pytest.raises(ValueError, match="packed form") as caught:
        g.personalize(tuned, model, OMEGA)
    assert "\n" not in str(caught.value)


def test_a_dora_that_comes_later_is_refused_before_the_first_forward(pair, models, forwards):
    model, plain = models
    tuned = g.personalize(g.with_lora(model, g.lora(plain, only="attn"), 0.8), model, OMEGA)
    with pytest.raises(ValueError, match="packed form"):
        draw(pair, g.with_lora(tuned, g.lora(plain, kind="dora", only="attn", seed=9), 0.5))
    assert not forwards


def test_two_packed_checkpoints(pair, models):
    """Two files differ: refused. One file twice, and a LoRA: exact."""
    model, plain = models
    with pytest.raises(ValueError, match="two checkpoints"):
        g.personalize(packed(g.base_model(seed=1)[0])[0], model, OMEGA)
    with pytest.raises(ValueError, match="two checkpoints"):
        g.personalize(g.base_model(seed=1)[0], model, OMEGA)
    again = packed(pair.base)[0]
    state = g.lora(plain, only="attn")
    truth = draw(pair, g.brute_force(g.with_lora(plain, state, 0.8), plain, OMEGA))
    assert g.error(draw(pair, g.personalize(g.with_lora(model, state, 0.8), again, OMEGA)), truth) < 1e-5
