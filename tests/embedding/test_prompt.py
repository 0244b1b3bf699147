"""Text Encode Concept without a graph: class prompts, anchors, lengths, and the choice of alpha."""

import pytest
import torch
from kindred_testing import pack, text_models

TEXT = "a photo of a <v1> dog on the beach"


def token(clip, text="<v1>", word="dog", count=1, seed=1, scale=0.05):
    generator = torch.Generator().manual_seed(seed)
    vectors = {key: torch.randn(count, width, generator=generator) * scale for key, width in pack("host.text").embedding_widths(clip).items()}
    return pack("formats.token").LearnedToken(text, word, vectors)


def carrying(family, **kwargs):
    clip = getattr(text_models, family)()
    return pack("host.text").carry_tokens(clip, [token(clip, **kwargs)])


def encode(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl", "pixart", "mochi"])
def test_it_is_conditioning_slerp_of_the_two_prompts(family):
    with torch.inference_mode():
        prompt, adjust = pack("embedding.prompt"), pack("embedding.conditioning").adjust_conditioning
        clip = carrying(family)
        done = prompt.encode_concept(clip, TEXT, alpha=0.3, beta=0.4)
        assert done.class_text == "a photo of a dog on the beach"
        assert torch.equal(done.class_conditioning[0][0], encode(clip, done.class_text)[0][0])
        want = adjust(encode(clip, TEXT), done.class_conditioning, 0.3, 0.4, partners=prompt.text_partners(clip, TEXT, ""))
        assert torch.equal(done.conditioning[0][0], want[0][0])
        kept = prompt.encode_concept(clip, TEXT, alpha=0.0, beta=0.0)
        assert torch.equal(kept.conditioning[0][0], encode(clip, TEXT)[0][0])


def test_a_base_encoder_is_the_anchor():
    with torch.inference_mode():
        clip, base = carrying("sd15"), text_models.sd15(seed=9)
        done = pack("embedding.prompt").encode_concept(clip, TEXT, class_clip=base, alpha=0.2)
        assert torch.equal(done.class_conditioning[0][0], encode(base, "a photo of a dog on the beach")[0][0])
        for alpha in (0.2, None):
            with pytest.raises(ValueError, match="768 wide and the class conditioning 1024"):
                pack("embedding.prompt").encode_concept(clip, TEXT, class_clip=text_models.sd2(), alpha=alpha)


def test_by_position_the_class_prompt_grows_by_the_encoders_own_rule():
    """CLIP: whole empty chunks. T5: padding tokens, to the row."""
    with torch.inference_mode():
        prompt = pack("embedding.prompt")
        clip = carrying("sd15", count=6)
        text = "<v1> dog " + "and a thing " * 22 + "on a hill"
        assert encode(clip, text)[0][0].shape[1] == 154 and encode(clip, text.replace("<v1> ", ""))[0][0].shape[1] == 77
        done = prompt.encode_concept(clip, text, alpha=0.2, align="position")
        assert torch.equal(done.class_conditioning[0][0][:, 77:], encode(clip, "")[0][0])
        assert prompt.encode_concept(clip, text, alpha=0.2, align="token").conditioning[0][0].shape[1] == 154
        t5 = carrying("pixart")
        done = prompt.encode_concept(t5, TEXT, alpha=0.2, align="position")
        ids = [entry[0] for entry in t5.tokenize(done.class_text)["t5xxl"][0]]
        assert torch.equal(done.class_conditioning[0][0], t5.encode_from_tokens({"t5xxl": [[(i, 1.0) for i in [*ids, 0]]]}))


def test_several_concepts_in_one_prompt():
    with torch.inference_mode():
        host_text, prompt = pack("host.text"), pack("embedding.prompt")
        base = text_models.sdxl()
        clip = host_text.carry_tokens(base, [token(base), token(base, "<v2>", "cat", 2, 2), token(base, "sks", "teapot", 1, 3)])
        done = prompt.encode_concept(clip, "(<v1>:1.2) and a <v2> cat next to sks", alpha=None, keep=0.9)
        assert done.class_text == "(dog:1.2) and a cat next to teapot"
        assert done.choice.kept == pytest.approx(0.9, abs=0.01) and "keeps 90%" in done.describe()


@pytest.mark.parametrize("family", ["sd15", "sdxl", "pixart"])
def test_the_chosen_alpha_is_the_smallest_that_keeps_the_share(family):
    with torch.inference_mode():
        prompt, auto = pack("embedding.prompt"), pack("embedding.auto")
        clip = carrying(family)
        shares = []
        for keep in (0.6, 0.75, 0.9, 1.0):
            choice = prompt.encode_concept(clip, TEXT, alpha=None, keep=keep).choice
            assert choice.kept >= keep - 1e-6 or choice.alpha == 1.0
            shares.append(choice.alpha)
        assert shares == sorted(shares)
        features = prompt.concept_features(clip, clip, TEXT)
        for keep in (0.7, 0.9):
            choice = auto.choose(features, keep)
            around = [choice.alpha + step * auto.TOLERANCE for step in range(-300, 1, 5) if choice.alpha + step * auto.TOLERANCE >= 0]
            assert all(auto.kept(features, alpha) < keep for alpha in around[:-1]) and auto.kept(features, around[-1]) >= keep
            assert choice.alpha == 0 or auto.kept(features, max(0.0, choice.alpha - auto.TOLERANCE)) < keep
        assert auto.kept(features, 1.0) == pytest.approx(1.0, abs=1e-5)


def test_no_rotation_where_nothing_is_lost():
    with torch.inference_mode():
        prompt, clip = pack("embedding.prompt"), carrying("sd15")
        bare = prompt.encode_concept(clip, "a photo of a <v1> dog", alpha=None)
        assert bare.alpha == 0 and bare.choice.kept is None and "no scene" in bare.describe()
        word = pack("host.text").embed_word(clip, "clip_l", "big")
        tame = pack("host.text").carry_tokens(text_models.sd15(), [pack("formats.token").LearnedToken("<v1>", "dog", {"clip_l": word})])
        before = prompt.encode_concept(tame, TEXT, alpha=None, keep=1.0).choice.kept_before
        assert prompt.encode_concept(tame, TEXT, alpha=None, keep=before - 0.01).alpha == 0


def test_prompts_that_cannot_be_adjusted():
    with torch.inference_mode():
        prompt, clip = pack("embedding.prompt"), carrying("sd15")
        with pytest.raises(ValueError, match=r"'a dog' names no token .*'<v1>'"):
            prompt.encode_concept(clip, "a dog")
        with pytest.raises(ValueError, match="none: connect"):
            prompt.encode_concept(text_models.sd15(), TEXT)
        with pytest.raises(ValueError, match="'<v1>' has no class word"):
            prompt.encode_concept(carrying("sd15", word=""), TEXT)
        for name in ("alpha", "beta"):
            with pytest.raises(ValueError, match=f"{name} is 1.2"):
                prompt.encode_concept(clip, TEXT, **{name: 1.2})


def test_a_scheduled_lora_on_the_text_encoder_keeps_its_schedule():
    """Set CLIP Hooks with a schedule gives one entry for each range: each meets the class prompt's of the same range."""
    import comfy.hooks
    from comfy_extras.nodes_hooks import SetClipHooks

    with torch.inference_mode():
        name = "lora_te_text_model_encoder_layers_0_mlp_fc1"
        clip = carrying("sd15")
        generator = torch.Generator().manual_seed(8)
        lora = {f"{name}.lora_up.weight": torch.randn(256, 4, generator=generator), f"{name}.lora_down.weight": torch.randn(4, 768, generator=generator)}
        hooks, schedule = comfy.hooks.create_hook_lora(lora, 1.0, 1.0), comfy.hooks.HookKeyframeGroup()
        schedule.add(comfy.hooks.HookKeyframe(1.0, 0.0))
        schedule.add(comfy.hooks.HookKeyframe(0.2, 0.5))
        hooks.set_keyframes_on_hooks(schedule)
        (hooked,) = SetClipHooks().apply_hooks(clip, True, True, hooks)
        plain, anchor = encode(hooked, TEXT), encode(hooked, "a photo of a dog on the beach")
        assert len(plain) == 2 and not torch.equal(plain[0][0], plain[1][0])
        done = pack("embedding.prompt").encode_concept(hooked, TEXT, alpha=0.2)
        partners = pack("embedding.prompt").text_partners(hooked, TEXT, "")
        for got, own, other in zip(done.conditioning, plain, anchor, strict=True):
            assert got[1]["hooks"] is own[1]["hooks"] and got[1]["clip_end_percent"] == own[1]["clip_end_percent"]
            want = pack("embedding.conditioning").adjust_conditioning([own], [other], 0.2, partners=partners)
            assert torch.allclose(got[0], want[0][0], atol=1e-6)


@pytest.mark.parametrize("align, encoded", [("token", 4), ("position", 5)])
def test_auto_alpha_encodes_each_prompt_once(align, encoded, monkeypatch):
    """Prompt and class prompt, and both bare ones. By position the class prompt is padded, so that its features are encoded apart."""
    host, calls = pack("host.prompt"), []
    encode_once = host.encode
    monkeypatch.setattr(host, "encode", lambda clip, tokens: calls.append(1) or encode_once(clip, tokens))
    with torch.inference_mode():
        pack("embedding.prompt").encode_concept(carrying("sd15"), TEXT, alpha=None, align=align)
    assert len(calls) == encoded
