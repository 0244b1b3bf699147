"""Token SLERP: tokens of any origin, in every encoder that has them, nearer to their class word."""

import pytest
import torch
from kindred_testing import pack, text_models
from safetensors.torch import save_file


def make_token(clip, text="<v1>", word="dog", count=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    vectors = {key: torch.randn(count, width, generator=generator) for key, width in pack("host.text").embedding_widths(clip).items()}
    return pack("formats.token").LearnedToken(text, word, vectors)


@pytest.mark.parametrize("family", text_models.FAMILIES)
def test_each_vector_of_each_encoder_turns_toward_the_class_word(family):
    with torch.inference_mode():
        host_text, slerp = pack("host.text"), pack("embedding.slerp")
        clip = text_models.FAMILIES[family]()
        token = make_token(clip)
        carrying = host_text.carry_tokens(clip, [token])
        before = {key: value.clone() for key, value in token.vectors.items()}
        adjusted, (new,) = pack("embedding.carried").adjust_clip(carrying, "<v1>", "", 0.2, 0.5, "midpoint")
        for key, vectors in before.items():
            (word,) = host_text.word_ids(clip, key, "dog")
            c = host_text.input_embeddings(clip, key)[word]
            assert torch.equal(new.vectors[key], slerp.adjust(vectors, c[None].float(), 0.2, 0.5))
            assert torch.equal(host_text.carried_tokens(carrying)["<v1>"].vectors[key], vectors), "the incoming clip changed"
            assert host_text.carried_tokens(adjusted)["<v1>"].vectors[key] is new.vectors[key]
        assert new.metadata["tea"] == "midpoint alpha=0.2 beta=0.5 dog"


def test_a_class_word_of_several_pieces():
    """The direction of the pieces' mean, at the mean of their lengths."""
    with torch.inference_mode():
        host_text = pack("host.text")
        clip = text_models.sd15()
        pieces = host_text.embed_word(clip, "clip_l", "tabby cat")
        assert len(pieces) == 2
        c = pack("embedding.tokens").class_vector(pieces)
        assert torch.allclose(c.norm(), pieces.norm(dim=-1).mean())
        assert torch.nn.functional.cosine_similarity(c, pieces.mean(0, keepdim=True)).item() == pytest.approx(1.0, abs=1e-6)
        one = host_text.embed_word(clip, "clip_l", "cat")
        assert pack("embedding.tokens").class_vector(one) is one
        _, (new,) = pack("embedding.carried").adjust_clip(host_text.carry_tokens(clip, [make_token(clip)]), "<v1>", "tabby cat", 1.0, 1.0, "class")
        assert torch.allclose(new.vectors["clip_l"], c.expand(3, -1), atol=1e-6) and new.class_word == "tabby cat"


def test_several_tokens_and_all_of_them():
    with torch.inference_mode():
        host_text, adjust_clip = pack("host.text"), pack("embedding.carried").adjust_clip
        clip = text_models.sdxl()
        carrying = host_text.carry_tokens(clip, [make_token(clip), make_token(clip, "<v2>", "cat", 1, 2), make_token(clip, "<v3>", "bird", 1, 3)])
        some = host_text.carried_tokens(adjust_clip(carrying, "<v1>, <v2>", "wolf, lion", 0.2, 0.5, "class")[0])
        assert [token.class_word for token in some.values()] == ["wolf", "lion", "bird"]
        assert some["<v3>"] is host_text.carried_tokens(carrying)["<v3>"]
        everyone = adjust_clip(carrying, "", "", 0.2, 0.5, "midpoint")[1]
        assert [(token.text, token.class_word) for token in everyone] == [("<v1>", "dog"), ("<v2>", "cat"), ("<v3>", "bird")]
        kept = adjust_clip(carrying, "<v1>", "", 0.0, 0.0, "midpoint")[1][0]
        assert all(torch.equal(kept.vectors[key], value) for key, value in host_text.carried_tokens(carrying)["<v1>"].vectors.items())


@pytest.mark.parametrize("layout", ["diffusers.safetensors", "a1111.pt", "kohya-xl.safetensors"])
def test_files_that_people_own_by_their_name(layout):
    with torch.inference_mode():
        host_text = pack("host.text")
        clip = text_models.sdxl() if "xl" in layout else text_models.sd15()
        folder = host_text.embedding_folders(clip)[0]
        name = f"owned-{layout.split('.')[0]}"
        v, g, path = torch.randn(2, 768), torch.randn(2, 1280), f"{folder}/owned-{layout}"
        if layout == "a1111.pt":
            torch.save({"string_to_param": {"*": v}, "string_to_token": {"*": 265}, "name": "x"}, path)
        else:
            save_file({"clip_l": v, "clip_g": g} if "xl" in layout else {"<toy>": v}, path)
        adjusted, (new,) = pack("embedding.carried").adjust_clip(clip, f"embedding:{name}", "teapot", 0.2, 0.5, "midpoint")
        want = pack("embedding.slerp").adjust(v, host_text.embed_word(clip, "clip_l", "teapot"), 0.2, 0.5)
        assert torch.equal(new.vectors["clip_l"], want) and new.text == f"embedding:{name}"
        row = adjusted.tokenize(f"a embedding:{name} on a table")["l"][0][2][0]
        assert torch.equal(row, want[0])
        again = pack("embedding.carried").adjust_clip(adjusted, f"embedding:{name}", "", 0.0, 0.0, "midpoint")[1][0]
        assert torch.equal(again.vectors["clip_l"], want), "a carried one goes before the file"


def test_what_is_missing_is_named():
    with torch.inference_mode():
        host_text, adjust_clip = pack("host.text"), pack("embedding.carried").adjust_clip
        clip = text_models.sd15()
        carrying = host_text.carry_tokens(clip, [make_token(clip)])
        for names, words, match in (
            ("<v9>", "", "no token '<v9>' \\(it carries '<v1>'\\)"),
            ("embedding:nobody", "dog", "no embedding 'nobody'"),
            ("embedding:../../x", "dog", "not the name"),
            ("<v1>", "dog, cat", "1 tokens .* and 2 class words"),
        ):
            with pytest.raises(ValueError, match=match):
                adjust_clip(carrying, names, words, 0.2, 0.5, "midpoint")
        with pytest.raises(ValueError, match="gives no word"):
            host_text.embed_word(clip, "clip_l", " ")
        with pytest.raises(ValueError, match="carries no token"):
            adjust_clip(clip, "", "", 0.2, 0.5, "midpoint")
        with pytest.raises(ValueError, match="has no class word"):
            adjust_clip(host_text.carry_tokens(clip, [make_token(clip, word="")]), "<v1>", "", 0.2, 0.5, "midpoint")
        with pytest.raises(ValueError, match="alpha is nan"):
            adjust_clip(carrying, "<v1>", "", float("nan"), 0.5, "midpoint")
