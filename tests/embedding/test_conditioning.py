"""Conditioning SLERP on real conditionings of six families: against the formula row by row, and all that must stay attached."""

import pytest
import torch
from kindred_testing import pack, text_models

TEXT, CLASS_TEXT = "a photo of a <v1> dog on the beach", "a photo of a dog on the beach"
ENCODERS = {"sd15": [("", 768)], "sd2": [("", 1024)], "sdxl": [("clip_l", 768), ("clip_g", 1280)], "pixart": [("", 128)], "mochi": [("", 128)]}


def formula(v, c, alpha, beta):
    v, c = v.double(), c.double()
    n = (1 - beta) * v.norm() + beta * c.norm()
    a, b = n * v / v.norm(), n * c / c.norm()
    t = torch.acos(((a @ b) / n**2).clamp(-1, 1))
    return a if t < 1e-7 else torch.sin((1 - alpha) * t) / torch.sin(t) * a + torch.sin(alpha * t) / torch.sin(t) * b


def carrying(family, count=1):
    clip = getattr(text_models, family)()
    generator = torch.Generator().manual_seed(5)
    vectors = {key: torch.randn(count, width, generator=generator) * 0.05 for key, width in pack("host.text").embedding_widths(clip).items()}
    return pack("host.text").carry_tokens(clip, [pack("formats.token").LearnedToken("<v1>", "dog", vectors)])


def encode(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def relative(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("align", ["position", "token"])
def test_every_row_of_every_encoder_is_the_formula(family, align):
    with torch.inference_mode():
        clip = carrying(family)
        prompt = pack("embedding.prompt")
        plain, class_text = encode(clip, TEXT), CLASS_TEXT if align == "token" else "a photo of one big dog on the beach"[: None if family == "pixart" else 99]
        if align == "position":
            class_text = "a photo of a big dog on the beach"  # as many tokens as TEXT
        anchor = encode(clip, class_text)
        partners = prompt.text_partners(clip, TEXT, class_text) if align == "token" else None
        (cond, extra), (v, v_extra), (c, c_extra) = (
            pack("embedding.conditioning").adjust_conditioning(plain, anchor, 0.2, 0.5, "midpoint", partners)[0],
            plain[0],
            anchor[0],
        )
        left = 0
        for key, width in ENCODERS[family]:
            rows = torch.arange(v.shape[1]) if partners is None else partners[key or next(iter(partners))]
            for row, partner in enumerate(rows.tolist()):
                place = (0, row, slice(left, left + width))
                masked = "attention_mask" in v_extra and not v_extra["attention_mask"][0, row]
                if partner < 0 or masked or (partners is not None and "attention_mask" in c_extra and not c_extra["attention_mask"][0, partner]):
                    assert torch.equal(cond[place], v[place]), row
                else:
                    assert relative(cond[place], formula(v[place], c[0, partner, left : left + width], 0.2, 0.5)) < 1e-6, row
            left += width
        if v_extra["pooled_output"] is not None:
            assert relative(extra["pooled_output"][0], formula(v_extra["pooled_output"][0], c_extra["pooled_output"][0], 0.2, 0.5)) < 1e-6


def test_sd3_rows_of_clip_and_t5_are_told_apart():
    with torch.inference_mode():
        clip = carrying("sd3", count=2)
        plain, anchor = encode(clip, TEXT + " and so on" * 40), encode(clip, CLASS_TEXT + " and so on" * 40)
        partners = pack("embedding.prompt").text_partners(clip, TEXT + " and so on" * 40, CLASS_TEXT + " and so on" * 40)
        v, c = plain[0][0], anchor[0][0]
        assert v.shape[1] == 2 * 77 + len(partners["t5xxl"])
        blocks = pack("embedding.layout").blocks(v, plain[0][1]["pooled_output"])
        assert [(b.encoder, b.start, b.stop, b.left, b.right) for b in blocks] == [
            ("clip_l", 0, 154, 0, 768),
            ("clip_g", 0, 154, 768, 2048),
            ("t5xxl", 154, v.shape[1], 0, 4096),
        ]
        out = pack("embedding.conditioning").adjust_conditioning(plain, anchor, 0.3, 0.5, partners=partners)[0][0]
        assert torch.equal(out[:, :154, 2048:], v[:, :154, 2048:])
        offset = sum(map(len, pack("host.prompt").by_encoder(clip, clip.tokenize(CLASS_TEXT + " and so on" * 40))["clip_l"]))
        for key, start, class_start, columns in (("clip_l", 0, 0, slice(0, 768)), ("clip_g", 0, 0, slice(768, 2048)), ("t5xxl", 154, offset, slice(0, 4096))):
            for row in (4, 6, 7, 9, 20):
                partner = int(partners[key][row])
                want = v[0, start + row, columns] if partner < 0 else formula(v[0, start + row, columns], c[0, class_start + partner, columns], 0.3, 0.5)
                assert relative(out[0, start + row, columns], want.double()) < 1e-6, (key, row)


def test_alpha_0_with_the_norm_kept_changes_no_bit_and_nothing_is_mutated():
    with torch.inference_mode():
        adjust = pack("embedding.conditioning").adjust_conditioning
        for family in ENCODERS:
            clip = carrying(family)
            plain, anchor = encode(clip, TEXT), encode(clip, "a photo of a big dog on the beach")
            before = [(entry[0].clone(), dict(entry[1])) for entry in (*plain, *anchor)]
            same = adjust(plain, anchor, 0.0, 0.0)
            assert torch.equal(same[0][0], plain[0][0])
            if plain[0][1]["pooled_output"] is not None:
                assert torch.equal(same[0][1]["pooled_output"], plain[0][1]["pooled_output"])
            adjust(plain, anchor, 0.7, 0.5)
            for entry, (tensor, extra) in zip((*plain, *anchor), before, strict=True):
                assert torch.equal(entry[0], tensor) and entry[1].keys() == extra.keys() and all(entry[1][key] is extra[key] for key in extra)


def test_what_hangs_on_an_entry_stays_on_it():
    import comfy.hooks
    import node_helpers

    with torch.inference_mode():
        clip = carrying("sd15")
        hooks, control = comfy.hooks.HookGroup(), object()
        left = node_helpers.conditioning_set_values(encode(clip, TEXT), {"area": (8, 4, 0, 0), "strength": 0.7, "hooks": hooks, "start_percent": 0.2})
        right = node_helpers.conditioning_set_values(encode(clip, "<v1> dog"), {"mask": torch.ones(1, 8, 8), "control": control, "set_area_to_bounds": False})
        anchors = encode(clip, "a photo of a big dog on the beach") + encode(clip, "big dog")
        adjust = pack("embedding.conditioning").adjust_conditioning
        out = adjust(left + right, anchors, 0.2, 0.5)
        for new, old in zip(out, left + right, strict=True):
            assert {k: v for k, v in new[1].items() if k != "pooled_output"} == {k: v for k, v in old[1].items() if k != "pooled_output"}
        assert torch.equal(out[1][0], adjust(right, anchors[1:], 0.2, 0.5)[0][0])
        assert len(adjust(left + right, anchors[:1])) == 2
        with pytest.raises(ValueError, match="2 entries and the class conditioning 3"):
            adjust(left + right, anchors + anchors[:1])
        with pytest.raises(ValueError, match="0 entries"):
            adjust([], anchors)


def test_a_share_of_the_sampling_uses_the_hosts_ranges():
    with torch.inference_mode():
        clip = carrying("sd15")
        adjust = pack("embedding.conditioning").adjust_conditioning
        plain, anchor = encode(clip, TEXT), encode(clip, CLASS_TEXT)
        parts = adjust(plain, anchor, 0.2, 0.5, start=0.25, end=0.75)
        ranges = [(round(entry[1]["start_percent"], 3), round(entry[1]["end_percent"], 3)) for entry in parts]
        assert ranges == [(0.0, 0.25), (0.25, 0.75), (0.75, 1.0)]
        assert torch.equal(parts[0][0], plain[0][0]) and torch.equal(parts[2][0], plain[0][0]) and not torch.equal(parts[1][0], plain[0][0])
        assert parts[0][1]["end_percent"] < parts[1][1]["start_percent"] and parts[1][1]["end_percent"] < parts[2][1]["start_percent"]
        ranged = [[plain[0][0], {**plain[0][1], "start_percent": 0.5, "end_percent": 0.6}]]
        assert [(e[1]["start_percent"], e[1]["end_percent"]) for e in adjust(ranged, anchor, start=0.0, end=0.9)] == [(0.5, 0.6)]
        assert adjust(ranged, anchor, start=0.7, end=0.9)[0] is ranged[0]
        with pytest.raises(ValueError, match=r"start_percent is 0\.5 and end_percent is 0\.5"):
            adjust(plain, anchor, start=0.5, end=0.5)


def test_a_batch_takes_one_class_or_as_many():
    with torch.inference_mode():
        clip = carrying("sd15")
        adjust = pack("embedding.conditioning").adjust_conditioning
        one, two, anchor = encode(clip, TEXT)[0], encode(clip, "<v1> dog, a portrait")[0], encode(clip, CLASS_TEXT)
        batch = [[torch.cat([one[0], two[0]]), {"pooled_output": torch.cat([one[1]["pooled_output"], two[1]["pooled_output"]])}]]
        out = adjust(batch, anchor, 0.3)
        assert torch.equal(out[0][0][1], adjust([two], anchor, 0.3)[0][0][0])
        assert torch.equal(out[0][1]["pooled_output"][0], adjust([one], anchor, 0.3)[0][1]["pooled_output"][0])


def test_lengths_and_widths_that_do_not_fit_are_shown():
    with torch.inference_mode():
        adjust = pack("embedding.conditioning").adjust_conditioning
        clip, t5, xl = carrying("sd15"), carrying("pixart"), carrying("sdxl")
        with pytest.raises(ValueError, match="154 rows and the class conditioning 77"):
            adjust(encode(clip, TEXT + " more" * 80), encode(clip, CLASS_TEXT))
        with pytest.raises(ValueError, match="12 rows and the class conditioning 11"):
            adjust(encode(t5, TEXT), encode(t5, CLASS_TEXT))
        with pytest.raises(ValueError, match="768 wide and the class conditioning 2048"):
            adjust(encode(clip, TEXT), encode(xl, CLASS_TEXT))
        with pytest.raises(ValueError, match="expected \\[batch, rows, width\\]"):
            adjust([[torch.ones(1, 2, 3, 4), {}]], [[torch.ones(1, 2, 3, 4), {}]])
        with pytest.raises(ValueError, match="connect clip"):
            pack("embedding.prompt").text_partners(None, TEXT, "")
        with pytest.raises(ValueError, match="not those that were encoded"):
            adjust(encode(clip, TEXT), encode(clip, CLASS_TEXT), partners=pack("embedding.prompt").text_partners(clip, TEXT + " x" * 99, ""))


def test_token_alignment_of_prompts():
    align = pack("embedding.align")
    special, vector = align.Special(1, 2, 2), torch.ones(3)

    def partners(left, right, special=special):
        return align.by_token(left, right, special).tolist()

    # inserted: V* has no partner and the rest meets its own kind; padding counts from the end of the words
    assert partners([[1, 5, vector, 6, 7, 2, 2, 2]], [[1, 5, 6, 7, 2, 2, 2, 2]]) == [0, 1, -1, 2, 3, 4, 5, 6]
    # standing for the class word: it meets it; of two vectors the second is left over
    assert partners([[1, 5, vector, 7, 2]], [[1, 5, 6, 7, 2]]) == [0, 1, 2, 3, 4]
    assert partners([[1, 5, vector, vector * 2, 7, 2]], [[1, 5, 6, 7, 2, 2]]) == [0, 1, 2, -1, 3, 4]
    # a learned token on both sides is itself
    assert partners([[1, vector, 5, 2]], [[1, 5, vector.clone(), 2]]) in ([0, 2, -1, 3], [0, -1, 1, 3])
    # words cross from one chunk to the next; each chunk's frame meets that of the same number
    assert partners([[1, 5, vector, 2], [1, 6, 2, 2]], [[1, 5, 6, 2]]) == [0, 1, -1, 3, -1, 2, -1, -1]
    # CLIP-G pads with the id of a word ("!" is 0): only what stands after the end is padding
    bang = align.Special(1, 2, 0)
    assert partners([[1, 0, vector, 0, 2, 0, 0]], [[1, 0, 0, 2, 0, 0, 0]], bang) == [0, 1, -1, 2, 3, 4, 5]
    # no start token (T5), no end token at all (padding only)
    assert partners([[5, vector, 6, 2]], [[5, 6, 2, 0]], align.Special(None, 2, 0)) == [0, -1, 1, 2]
    assert partners([[5, vector, 6, 0]], [[5, 6, 0, 0]], align.Special(None, None, 0)) == [0, -1, 1, 2]
