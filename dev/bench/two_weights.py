"""Custom nodes for `beside_packs.py`: the brute forces that it compares with. They know nothing of batches and wrappers, and nothing of this pack.

TwoWeights, for guidance: while it samples, each prediction runs twice over all conditions: once with the tuned weights, once with the weak ones copied over them. The negative list's
result is taken from the second run, every other list's from the first.
MaskedRows, for a concept on its token's rows: hooks on K and V of cross-attention.
"""

import comfy.patcher_extension
import comfy.samplers
import comfy.utils
import folder_paths
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


class MaskedRows:
    """K = W x + dW x for each row x of the text whose features are those of the token, or of the word behind it, in one of `texts`."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "clip": ("CLIP",), "lora": ("STRING",), "token": ("STRING",), "texts": ("STRING",)}}

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"

    def patch(self, model, clip, lora, token, texts):
        file = load_file(folder_paths.get_full_path_or_raise("loras", f"kindred/{lora}.safetensors"))
        vectors = load_file(folder_paths.get_full_path_or_raise("embeddings", f"{lora}.safetensors"))
        wanted = {tuple(vector.tolist()) for of_encoder in vectors.values() for vector in of_encoder}
        rows = {}
        for text in texts.splitlines():
            tokens = clip.tokenize(text)
            features = clip.encode_from_tokens_scheduled(tokens)[0][0][0]
            flat = [entry[0] for chunk in tokens["l"] for entry in chunk]
            own = [torch.is_tensor(entry) and tuple(entry.flatten().tolist()) in wanted for entry in flat]
            for at in range(1, len(flat)):
                if own[at] or (own[at - 1] and not torch.is_tensor(flat[at])):
                    rows[features[at].numpy().tobytes()] = features[at]
        hooks = {key.removesuffix(".diff"): self.hook(delta, list(rows.values())) for key, delta in file.items() if key.endswith(".diff")}

        def run(executor, *args, **kwargs):
            with model.use_ejected():  # a pack may have put modules in between, which move the others' places
                layers = [(comfy.utils.get_attr(model.model, path), hook) for path, hook in hooks.items()]
            handles = [layer.register_forward_hook(hook) for layer, hook in layers]
            try:
                return executor(*args, **kwargs)
            finally:
                for handle in handles:
                    handle.remove()

        clone = model.clone()
        clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, f"masked_rows_{token}", run)
        return (clone,)

    @staticmethod
    def hook(delta, rows):
        def added(layer, arguments, output):
            x, output = arguments[0], output.clone()
            for row in rows:
                equal = (x == row.to(x)).all(dim=-1)
                output[equal] += delta.to(x) @ row.to(x)
            return output

        return added


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


NODE_CLASS_MAPPINGS = {"TwoWeights": TwoWeights, "MaskedRows": MaskedRows, "CompareConditioning": CompareConditioning}
