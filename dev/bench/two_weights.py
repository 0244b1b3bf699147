"""A custom node for `beside_packs.py`: the brute force that guidance is compared with.

While it samples, each prediction runs twice over all conditions: once with the tuned weights, once with the weak ones copied over them. The negative list's
result is taken from the second run, every other list's from the first. It knows nothing of batches, rows and wrappers, and nothing of this pack.
"""

import comfy.patcher_extension
import comfy.samplers
import comfy.utils
import torch
from safetensors.torch import load_file

PREFIX = "model.diffusion_model."


class TwoWeights:
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "weak_checkpoint": ("STRING",), "negative": ("CONDITIONING",)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"

    def patch(self, model, weak_checkpoint, negative):
        weak = {key.removeprefix(PREFIX): value for key, value in load_file(weak_checkpoint).items() if key.startswith(PREFIX)}
        with model.use_ejected():  # a pack may have put modules in between, which move the others' places
            owners = {key: comfy.utils.get_attr(model.model.diffusion_model, key.rpartition(".")[0]) for key in weak}
        text = negative[0][0]

        def is_negative(conditions):
            own = conditions[0].get("cross_attn") if conditions else None
            return own is not None and own.shape[1:] == text.shape[1:] and torch.equal(own[:1].cpu(), text[:1].cpu())

        def run(executor, *args, **kwargs):
            original = comfy.samplers._calc_cond_batch_outer
            weights = [(getattr(owners[key], key.rpartition(".")[2]), value) for key, value in weak.items()]
            pairs = [(weight, weight.detach().clone(), value.to(weight)) for weight, value in weights]

            def fill(which):
                for weight, *values in pairs:
                    weight.copy_(values[which])

            def both(module, conds, *rest):
                sides = [is_negative(conditions) for conditions in conds]
                if not any(sides):
                    return original(module, conds, *rest)
                tuned = original(module, conds, *rest)
                fill(1)
                try:
                    other = original(module, conds, *rest)
                finally:
                    fill(0)
                return [other[i] if negative else tuned[i] for i, negative in enumerate(sides)]

            comfy.samplers._calc_cond_batch_outer = both
            try:
                return executor(*args, **kwargs)
            finally:
                comfy.samplers._calc_cond_batch_outer = original

        clone = model.clone()
        clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, "two_weights", run)
        return (clone,)


class CompareConditioning:
    """Saves a conditioning's tensor where the script reads it."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",), "path": ("STRING",)}}

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save"

    def save(self, conditioning, path):
        torch.save([entry[0].detach().float().cpu().clone() for entry in conditioning], path)
        return {}


NODE_CLASS_MAPPINGS = {"TwoWeights": TwoWeights, "CompareConditioning": CompareConditioning}
