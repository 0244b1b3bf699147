"""A concept that acts on its token's rows, against projections that are masked by hand, in the host's own sampler."""

import logging

import pytest
import torch
from kindred_testing import pack
from kindred_testing import rows as r
from kindred_testing.guidance_models import comfy

PROMPT = "a photo of a <v1> dog on the beach"


def compared(base, model, clip, positive, negative, *named, **how):
    """Our picture, checked against the brute force on the base model."""
    got = r.sample(model, positive, negative, **how)
    with r.BruteForce(base[0], *named):
        wanted = r.sample(base[0], positive, negative, **how)
    r.assert_close(got, wanted, r.sample(base[0], positive, negative, **how))
    assert not any("forward" in vars(layer) for layer in base[0].model.modules()), "a forward was left behind"
    return got


@pytest.mark.parametrize("vectors, low_rank", [(1, False), (4, False), (1, True)])
def test_cfg_and_batches(base, vectors, low_rank):
    one = r.concept(base, vectors=vectors, low_rank=low_rank)
    model, clip = r.loaded(base, one)
    positive = r.encode(clip, PROMPT)
    compared(base, model, clip, positive, r.encode(base[1], ""), r.named(positive, range(5, 6 + vectors), one), batch=2)


def test_a_prompt_without_the_token_is_the_base_models_bit_for_bit(base, one, caplog):
    model, clip = r.loaded(base, one)
    positive, negative = r.encode(clip, "a photo of a dog on the beach"), r.encode(clip, "")
    caplog.set_level(logging.INFO)
    assert torch.equal(r.sample(model, positive, negative), r.sample(base[0], positive, negative))
    assert "no prompt of this run names '<v1>'" in caplog.text


def test_the_side_without_the_token_keeps_its_bits(base, one):
    """In one batch with a prompt that names the token, at each step: the null prediction is the base model's."""
    model, clip = r.loaded(base, one)
    positive, negative = r.encode(clip, PROMPT), r.encode(clip, "a photo of a dog on the beach")
    seen = []

    def keep(args):
        seen.append(args["uncond_denoised"].clone())
        return args["uncond"] + 3.0 * (args["cond"] - args["uncond"])

    pictures = []
    for each in (model, base[0]):
        each = each.clone()
        each.set_model_sampler_cfg_function(keep)
        pictures.append(r.sample(each, positive, negative, steps=1))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(*pictures)


@pytest.mark.parametrize("text", ["(<v1>:1.3) dog, (wearing a hat:0.7)", "a <v1> cat", "<v1>", "a dog beside <v1> dog", "(a <v1> dog)", "embedding:<v1> dog"])
def test_spellings(base, one, text):
    model, clip = r.loaded(base, one)
    positive = r.encode(clip, text)
    rows = r.vector_rows(clip, text, words=0 if "cat" in text or text == "<v1>" else 1)
    compared(base, model, clip, positive, r.encode(clip, ""), r.named(positive, rows, one))


def test_a_prompt_of_several_chunks_with_the_token_twice(base, one):
    model, clip = r.loaded(base, one)
    text = "a <v1> dog " + "very " * 90 + "near a <v1> dog"
    positive = r.encode(clip, text)
    assert positive[0][0].shape[1] == 154
    rows = r.vector_rows(clip, text)
    assert min(rows) < 77 <= max(rows)
    compared(base, model, clip, positive, r.encode(clip, ""), r.named(positive, rows, one))


def test_two_concepts_add_up_each_on_its_own_rows(base, one, two):
    model, clip = r.loaded(base, one, two)
    text = "a <v1> dog and a <v2> dog"
    positive = r.encode(clip, text)
    rows = r.vector_rows(clip, text)
    assert rows == [2, 3, 6, 7]
    compared(base, model, clip, positive, r.encode(clip, ""), r.named(positive, rows[:2], one), r.named(positive, rows[2:], two))
    # each alone, though both are loaded
    for text, concept in (("a <v1> dog", one), ("a <v2> dog", two)):
        positive = r.encode(clip, text)
        compared(base, model, clip, positive, r.encode(clip, ""), r.named(positive, [2, 3], concept))


@pytest.mark.parametrize("text, both", [(PROMPT, False), ("a <v1> dog beside a <v2> dog", True), ("a <v1> dog and a cat BREAK a <v2> dog", True)])
def test_the_end_token_is_the_concepts_where_no_other_is_named(base, text, both):
    """It has read the whole prompt: of one concept it is the summary, and of two it would be where they mix."""
    first, second = r.concept(base, seed=5, reach="token and end"), r.concept(base, "<v2>", seed=6, reach="token and end")
    model, clip = r.loaded(base, first, second)
    positive = r.encode(clip, text)
    chunks = clip.tokenize(text)["l"]
    named = []
    for one in (first, second):
        vector, positions = one.token.vectors["clip_l"][0], []
        for at, chunk in enumerate(chunks):
            own = [i for i, entry in enumerate(chunk) if torch.is_tensor(entry[0]) and torch.equal(entry[0].cpu().as_subclass(torch.Tensor), vector)]
            vectors = [i for i, entry in enumerate(chunk) if torch.is_tensor(entry[0])]
            ends = [i for i, entry in enumerate(chunk) if not torch.is_tensor(entry[0]) and entry[0] == 49407][:1]
            positions += [77 * at + i for row in own for i in (row, row + 1)] + [77 * at + i for i in ends if own and own == vectors]
        named += r.named(positive, positions, one)
    compared(base, model, clip, positive, r.encode(base[1], ""), named)
    assert any(one[1] is second.deltas for one in named) == both


def test_strength_and_loading_twice(base, one):
    model, clip = r.loaded(base, one, strength=0.5)
    model, clip = r.loaded((model, clip), one, strength=0.25)
    positive = r.encode(clip, PROMPT)
    compared(base, model, clip, positive, r.encode(clip, ""), r.named(positive, [5, 6], one, 0.75))


def test_beside_an_ordinary_lora(base, one):
    """A LoRA on the same layers acts on every row, the concept on its own."""
    other = r.concept(base, seed=3, size=0.02)
    plain, _ = pack("host.lora").apply_lora(base[0], None, dict(other.lora))
    model, clip = r.loaded((plain, base[1]), one)
    positive, negative = r.encode(clip, PROMPT), r.encode(clip, "")
    got = r.sample(model, positive, negative)
    with r.BruteForce(plain, r.named(positive, [5, 6], one)):
        wanted = r.sample(plain, positive, negative)
    r.assert_close(got, wanted, r.sample(plain, positive, negative))


def core(name: str):
    import nodes

    return nodes.NODE_CLASS_MAPPINGS[name]


def run_node(name: str, **inputs):
    node = core(name)()
    return getattr(node, node.FUNCTION)(**inputs)[0]


def test_combine_areas_masks_and_ranges(base, one, two):
    model, clip = r.loaded(base, one, two)
    first, second = r.encode(clip, "a <v1> dog"), r.encode(clip, "a photo of a <v2> dog")
    named = r.named(first, [2, 3], one), r.named(second, [5, 6], two)
    left = run_node("ConditioningSetAreaPercentage", conditioning=first, width=0.5, height=1.0, x=0.0, y=0.0, strength=1.0)
    half = torch.zeros(1, 64, 64)
    half[:, :, 32:] = 1
    right = run_node("ConditioningSetMask", conditioning=second, mask=half, set_cond_area="default", strength=0.8)
    late = run_node("ConditioningSetTimestepRange", conditioning=first, start=0.5, end=1.0)
    both = run_node("ConditioningCombine", conditioning_1=run_node("ConditioningCombine", conditioning_1=left, conditioning_2=right), conditioning_2=late)
    compared(base, model, clip, both, r.encode(clip, "a dog"), *named, steps=3)


def test_concat_finds_the_rows_of_both_prompts(base, one, two):
    model, clip = r.loaded(base, one, two)
    first, second = r.encode(clip, "a <v1> dog"), r.encode(clip, "on a beach with a <v2> dog")
    joined = run_node("ConditioningConcat", conditioning_to=first, conditioning_from=second)
    assert joined[0][0].shape[1] == 154
    rows = r.vector_rows(clip, "on a beach with a <v2> dog")
    compared(base, model, clip, joined, r.encode(clip, ""), r.named(first, [2, 3], one), r.named(second, rows, two))
    behind = run_node("ConditioningConcat", conditioning_to=r.encode(base[1], "a plain prompt"), conditioning_from=first)
    compared(base, model, clip, behind, r.encode(clip, ""), r.named(first, [2, 3], one))


def test_average_acts_where_the_token_stood_and_says_so(base, one, caplog):
    model, clip = r.loaded(base, one)
    first, second = r.encode(clip, "a <v1> dog"), r.encode(clip, "a <v1> dog on the beach")
    mixed = run_node("ConditioningAverage", conditioning_to=first, conditioning_from=second, conditioning_to_strength=0.6)
    compared(base, model, clip, mixed, r.encode(clip, ""), r.named(mixed, [2, 3], one))
    assert "was changed after it was encoded" in caplog.text


def test_features_that_another_node_made_are_not_silent(base, one, caplog):
    """Another pack that encodes by itself and changes the features: nothing tells where the token is."""
    model, clip = r.loaded(base, one)
    lost = [[r.encode(clip, PROMPT)[0][0] * 1.01, {}]]
    caplog.set_level(logging.INFO)
    assert torch.equal(r.sample(model, lost, r.encode(clip, "")), r.sample(base[0], lost, r.encode(clip, "")))
    assert "no prompt of this run names '<v1>'" in caplog.text
    assert "another node encoded it" in caplog.text


def test_a_pack_that_returns_the_features_in_a_dict_of_its_own(base, one):
    model, clip = r.loaded(base, one)
    with torch.inference_mode():
        cond, pooled = clip.encode_from_tokens(clip.tokenize(PROMPT), return_pooled=True)
    positive = [[cond, {"pooled_output": pooled}]]
    compared(base, model, clip, positive, r.encode(clip, ""), r.named(positive, [5, 6], one))


def test_text_encode_concept_and_conditioning_slerp(base, one):
    model, clip = r.loaded(base, one)
    done = pack("embedding.prompt").encode_concept(clip, PROMPT, class_clip=base[1], alpha=0.4)
    assert not torch.equal(done.conditioning[0][0], r.encode(clip, PROMPT)[0][0])
    compared(base, model, clip, done.conditioning, r.encode(clip, ""), r.named(done.conditioning, [5, 6], one))
    turned = pack("embedding.conditioning").adjust_conditioning(r.encode(clip, PROMPT), r.encode(clip, "a photo of a cat dog on the beach"), 0.3)
    joined = run_node("ConditioningConcat", conditioning_to=r.encode(clip, "a plain prompt"), conditioning_from=turned)
    compared(base, model, clip, joined, r.encode(clip, ""), r.named(turned, [5, 6], one))


def test_token_slerp_keeps_the_token_the_concepts(base, one):
    model, clip = r.loaded(base, one)
    turned, _ = pack("embedding.carried").adjust_clip(clip, "<v1>", "", 0.5, 0.5, "midpoint")
    positive = r.encode(turned, PROMPT)
    assert not torch.equal(positive[0][0], r.encode(clip, PROMPT)[0][0])
    compared(base, model, turned, positive, r.encode(clip, ""), r.named(positive, [5, 6], one))


def test_clips_that_later_nodes_make_still_know_the_rows(base, one):
    """A LoRA loader, CLIP Set Last Layer, another concept: each clones the CLIP."""
    model, clip = r.loaded(base, one)
    clip = run_node("CLIPSetLastLayer", clip=clip, stop_at_clip_layer=-2)
    positive = r.encode(clip, PROMPT)
    assert type(clip).__name__ == "CLIP"
    compared(base, model, clip, positive, r.encode(clip, ""), r.named(positive, [5, 6], one))


def test_core_reads_the_concept_as_plain_custom_diffusion(base, one):
    import comfy.sd

    everywhere, _ = comfy.sd.load_lora_for_models(base[0], None, dict(one.lora), 1.0, 0.0)
    _, clip = r.loaded(base, one)
    positive = r.encode(clip, "a photo of a dog")
    assert not torch.equal(r.sample(everywhere, positive, positive), r.sample(base[0], positive, positive))


def test_rows_that_no_version_knows_are_refused(base, one):
    lora = pack("formats.concept_file").LearnedLora(one.lora, {**one.lora.metadata, "kindred.rows": "everything but"})
    with pytest.raises(ValueError, match="acts on the rows 'everything but'"):
        pack("host.lora").apply_lora(base[0], None, lora)
    lora.metadata |= {"kindred.rows": "token", "kindred.rows_tokens": "[]"}
    with pytest.raises(ValueError, match="list of tokens is missing or damaged"):
        pack("host.lora").apply_lora(base[0], None, lora)


def test_an_exception_leaves_no_forward_behind(base, one):
    model, clip = r.loaded(base, one)
    model = model.clone()

    def fail(args):
        raise RuntimeError("stopped")

    model.set_model_sampler_cfg_function(fail)
    with pytest.raises(RuntimeError, match="stopped"):
        r.sample(model, r.encode(clip, PROMPT), r.encode(clip, ""))
    assert not any("forward" in vars(layer) for layer in base[0].model.modules())


def test_conditioning_zero_out_is_no_prompt_with_a_token(base, one, caplog):
    model, clip = r.loaded(base, one)
    zero = run_node("ConditioningZeroOut", conditioning=r.encode(clip, PROMPT))
    assert torch.equal(r.sample(model, zero, zero), r.sample(base[0], zero, zero))
    assert "was changed after it was encoded" not in caplog.text


def test_an_encoder_that_makes_other_rows_is_named(base, one, caplog, monkeypatch):
    """As NegPip does: two rows for each token. Positions in the token list then say nothing."""
    model, clip = r.loaded(base, one)
    encoder = clip.cond_stage_model
    plain = encoder.encode_token_weights

    def doubled(tokens):
        cond, pooled = plain(tokens)[:2]
        return cond.repeat_interleave(2, dim=1), pooled

    monkeypatch.setattr(encoder, "encode_token_weights", doubled)
    positive = r.encode(clip, "a very strange <v1> dog")
    assert "makes 154 rows of a prompt of 77 tokens" in caplog.text
    assert torch.equal(r.sample(model, positive, positive), r.sample(base[0], positive, positive))


def foreign(patch):
    """`patch` as the code of another pack."""
    import types

    return types.FunctionType(patch.__code__, {"__name__": "custom_nodes.other.pack", "torch": torch}, closure=patch.__closure__)


def test_a_coupler_that_holds_its_own_prompts(base, one, two):
    """Layers get the features of prompts that the guider does not have: found where they name a token."""
    model, clip = r.loaded(base, one, two)
    first, second = r.encode(clip, "a <v1> dog"), r.encode(clip, "a photo of a <v2> dog in the snow")
    other = second[0][0]

    def couple(n, context, value, extra_options):
        return n, other.expand(len(context), -1, -1), other.expand(len(context), -1, -1)

    coupled, plain = model.clone(), base[0].clone()
    for each in (coupled, plain):
        each.set_model_attn2_patch(foreign(couple))
    negative = r.encode(clip, "")
    got = r.sample(coupled, first, negative)
    with r.BruteForce(base[0], r.named(second, [5, 6], two)):
        wanted = r.sample(plain, first, negative)
    r.assert_close(got, wanted, r.sample(plain, first, negative))


def test_features_that_a_patch_changes_inside_the_model_are_named(base, one, caplog):
    """As a hypernetwork does: what the layers get is no row that anyone encoded."""
    model, clip = r.loaded(base, one)

    def hyper(n, context, value, extra_options):
        return n, context * 1.1, value * 1.1

    changed, plain = model.clone(), base[0].clone()
    for each in (changed, plain):
        each.set_model_attn2_patch(foreign(hyper))
    positive, negative = r.encode(clip, PROMPT), r.encode(clip, "")
    assert torch.equal(r.sample(changed, positive, negative), r.sample(plain, positive, negative))
    assert "gives layers of the model text features of its own" in caplog.text


def test_a_concept_that_is_loaded_behind_guidance(base, one, two):
    """Load Concept after the Model Patch node: both act, whichever came first."""
    lora = dict(r.concept(base, seed=3, size=0.02).lora)
    tuned, _ = pack("host.lora").apply_lora(base[0], None, lora)
    guided = pack("guidance.guider").personalize(tuned, base[0], pack("guidance.schedule").Schedule(0.3))
    pictures = []
    for first, then in ((guided, one), (None, None)):
        if first is None:
            with_concept, clip = r.loaded((tuned, base[1]), one)
            without, _ = r.loaded(base, one)
            model = pack("guidance.guider").personalize(with_concept, without, pack("guidance.schedule").Schedule(0.3))
        else:
            model, clip = r.loaded((first, base[1]), then)
        pictures.append(r.sample(model, r.encode(clip, PROMPT), r.encode(clip, "a blurry <v1> dog")))
    r.assert_close(*pictures, r.sample(tuned, r.encode(clip, PROMPT), r.encode(clip, "a blurry <v1> dog")))


@pytest.mark.slow
@pytest.mark.usefixtures("linkable_torch")
def test_torch_compile(base, one):
    """The whole model, traced with the concept in it (guidance's tests run inductor on such forwards)."""
    model, clip = r.loaded(base, one)
    positive, negative = r.encode(clip, PROMPT), r.encode(clip, "")
    with r.BruteForce(base[0], r.named(positive, [5, 6], one)):
        wanted = r.sample(base[0], positive, negative)
    compiled = model.clone()
    comfy("comfy_api.torch_helpers").set_torch_compile_wrapper(compiled, backend="aot_eager", keys=["diffusion_model"])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    got = r.sample(compiled, positive, negative)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    torch._dynamo.reset()
    assert (got - wanted).abs().max() < 1e-4 * max(1.0, float(wanted.abs().max()))
