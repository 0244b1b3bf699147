"""A model whose weights only their own loader can read, made as ComfyUI-GGUF makes it."""

from __future__ import annotations

import torch

from .guidance_models import comfy, merged_state, with_state


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
        return super().to(*args, **kwargs).as_subclass(Packed)._tell(self.of_shape, self.scale, self.patches)

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
    host = comfy("comfy.ops").manual_cast.Linear

    class PackedLinear(host):
        def forward_comfy_cast_weights(self, x):
            weight = self.weight
            if not isinstance(weight, Packed):
                return super().forward_comfy_cast_weights(x)
            value = unpack(weight)
            for patches, key in weight.patches:
                value = comfy("comfy.lora").calculate_weight(patches, value, key)
            return torch.nn.functional.linear(x, value.to(x), self.bias)

        def _save_to_state_dict(self, destination, prefix, keep_vars):
            super()._save_to_state_dict(destination, prefix, keep_vars)
            raw = self.weight.as_subclass(torch.Tensor) if isinstance(self.weight, Packed) else self.weight
            destination[prefix + "weight"] = torch.empty(raw.shape, dtype=raw.dtype, device="meta")  # its shape there is that of the bytes
            destination[prefix + "temp.weight"] = torch.empty(1, device="meta")  # room for unpacking, which the host counts

    return PackedLinear


def packed(model):
    """(a model of the pack with its own patcher class, the plain model of the same weights)"""
    state = merged_state(model)
    plain = with_state(model, state)
    kind = packed_layer()

    class PackedPatcher(type(model)):
        def patch_weight_to_device(self, key, device_to=None, inplace_update=False, **kwargs):
            weight = comfy("comfy.utils").get_attr(self.model, key)
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
        out = with_state(model, state)
        for path, layer in out.model.diffusion_model.named_modules():
            if isinstance(layer, torch.nn.Linear) and ".attn" in path:
                layer.__class__, weight = kind, Packed.of(layer.weight)
                vars(layer).pop("comfy_cast_weights", None)  # the host leaves one behind where it had loaded the layer in part
                plain.model.diffusion_model.get_submodule(path).weight = torch.nn.Parameter(unpack(weight), requires_grad=False)
                layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        out.__class__ = PackedPatcher
    return out, plain
