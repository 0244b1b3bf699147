"""A CLIP that carries tokens reads them as core reads `embedding:name`, and everything else exactly as before."""

import pytest
import torch
from kindred_testing import pack, text_models

PLAIN = [
    "a photo of a dog on the beach",
    "",
    "(masterpiece:1.3), ((best)) quality, [x] \\(not weighted\\)",
    "a house embedding:does-not-exist under trees",
    "no embedding:at all,embedding:inside, preembedding:word",
    "long " * 200 + "end",
    "two\nlines, BREAK of the prompt",
    "犬 на пляже ñ 🐕",
    "{a|b} <lora:x:1> <v> v1 <v1",
]
WITH_TOKEN = [
    "a photo of a {} dog on the beach",
    "{}",
    "{} dog",
    "(({}:1.3) dog:0.8), (best) {}",
    "a {}, embedding:does-not-exist b",
    "lines\n{} more",
    "({} dog)",
    "many words and more " * 18 + "{} dog " + "and then more " * 40 + "{}",
]


def same(a, b) -> bool:
    """Equal token lists, conditionings or whatever is nested of them; tensors bit for bit."""
    if torch.is_tensor(a) or torch.is_tensor(b):
        return torch.is_tensor(a) and torch.is_tensor(b) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return isinstance(b, (list, tuple)) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def token_for(clip, text="<v1>", class_word="dog", count=2, seed=0):
    """A token with `count` vectors of usual length for every encoder of `clip`."""
    generator = torch.Generator().manual_seed(seed)
    widths = pack("host.text").embedding_widths(clip)
    vectors = {key: torch.randn(count, width, generator=generator) * 0.03 for key, width in widths.items()}
    return pack("formats.token").LearnedToken(text, class_word, vectors)


@pytest.fixture(params=text_models.FAMILIES)
def clip(request):
    with torch.inference_mode():
        yield text_models.FAMILIES[request.param]()


def test_prompts_without_tokens_are_untouched(clip):
    carrying = pack("host.text").carry_tokens(clip, [token_for(clip)])
    for text in PLAIN:
        for ids in (False, True):
            assert same(carrying.tokenize(text, return_word_ids=ids), clip.tokenize(text, return_word_ids=ids)), text
    weighted = PLAIN[2]
    for layer in (None, -2):  # clip skip
        plain, other = clip.clone(), carrying.clone()
        plain.clip_layer(layer)
        other.clip_layer(layer)
        assert same(other.encode_from_tokens_scheduled(other.tokenize(weighted)), plain.encode_from_tokens_scheduled(plain.tokenize(weighted))), layer


def test_a_token_reads_like_cores_embedding_of_the_saved_file(clip):
    host_text, files = pack("host.text"), pack("formats.token_file")
    token = token_for(clip)
    name = "kindred-test-" + "-".join(host_text.embedding_widths(clip))
    path = files.save(token, f"{host_text.embedding_folders(clip)[0]}/{name}.safetensors")
    carrying = host_text.carry_tokens(clip, [files.load(path, host_text.embedding_widths(clip))])
    for text in WITH_TOKEN:
        for ids in (False, True):
            ours = carrying.tokenize(text.replace("{}", "<v1>"), return_word_ids=ids)
            assert same(ours, clip.tokenize(text.replace("{}", f"embedding:{name}"), return_word_ids=ids)), text
        assert same(carrying.tokenize(text.replace("{}", "embedding:<v1>")), carrying.tokenize(text.replace("{}", "<v1>")))
    tokens = carrying.tokenize(WITH_TOKEN[0].replace("{}", "<v1>"))
    core = clip.tokenize(WITH_TOKEN[0].replace("{}", f"embedding:{name}"))
    for layer in (None, -2):
        plain, other = clip.clone(), carrying.clone()
        plain.clip_layer(layer)
        other.clip_layer(layer)
        assert same(other.encode_from_tokens_scheduled(tokens), plain.encode_from_tokens_scheduled(core))


def test_the_incoming_clip_never_learns_of_it(clip):
    host_text = pack("host.text")
    tokenizer, before = clip.tokenizer, clip.tokenize("a <v1> dog")
    one = host_text.carry_tokens(clip, [token_for(clip)])
    two = host_text.carry_tokens(one, [token_for(clip, "<v2>", seed=1), token_for(clip, "<v1>", seed=2)])
    assert clip.tokenizer is tokenizer and same(clip.tokenize("a <v1> dog"), before)
    assert list(host_text.carried_tokens(one)) == ["<v1>"] and list(host_text.carried_tokens(two)) == ["<v1>", "<v2>"]
    assert not same(one.tokenize("a <v1> dog"), two.tokenize("a <v1> dog")) and not host_text.carried_tokens(clip)
    assert one.cond_stage_model is clip.cond_stage_model
    assert list(host_text.carried_tokens(two.clone())) == ["<v1>", "<v2>"]


def test_an_encoder_without_the_token_reads_the_class_word():
    with torch.inference_mode():
        clip, host_text = text_models.sdxl(), pack("host.text")
        token = pack("formats.token").LearnedToken("<v1>", "dog", {"clip_l": torch.randn(1, 768)})
        tokens = host_text.carry_tokens(clip, [token]).tokenize("a (<v1>:1.2) dog and <v1>")
        assert same(tokens["g"], clip.tokenize("a dog and dog")["g"])
        assert torch.is_tensor(tokens["l"][0][2][0]) and tokens["l"][0][2][1] == 1.2


def test_gradients_reach_the_vectors():
    host_text = pack("host.text")
    clip = text_models.sd15()
    vector = torch.nn.Parameter(torch.randn(2, 768) * 0.03)
    carrying = host_text.carry_tokens(clip, [pack("formats.token").LearnedToken("<v1>", "dog", {"clip_l": vector})])
    ids = [entry[0] for entry in carrying.tokenize("a photo of a <v1> dog")["l"][0]]
    embedded = host_text.encoder_model(clip, "clip_l").process_tokens([ids], "cpu")[0]
    (embedded * torch.randn(1, 77, 1)).sum().backward()
    assert vector.grad is not None and (vector.grad.norm(dim=-1) > 0).all()


def test_words_around_and_inside_names():
    host_text, Token = pack("host.text"), pack("formats.token").LearnedToken
    tokens = {text: Token(text, word, {"clip_l": torch.zeros(1, 768)}) for text, word in (("<v1>", "dog"), ("sks", "tabby cat"), ("embedding:foo", "bird"))}
    assert host_text.mentions("sksy embedding:my-sks sks_1 embedding:foobar <v2>", tokens) == []
    assert host_text.mentions("(sks:1.1), embedding:foo.pt, <v1>dog <v1>", tokens) == ["sks", "embedding:foo", "<v1>"]
    for text, want in {
        "a photo of a <v1> dog on the beach": "a photo of a dog on the beach",
        "a photo of <v1>": "a photo of dog",
        "a (<v1>:1.3) dog": "a dog",
        "a ((<v1>:1.2)) dog": "a dog",
        "a (<v1> dog:1.3)": "a (dog:1.3)",
        "<v1> Dog, sks tabby  cat, (embedding:foo:1.2) bird": "Dog, tabby  cat, bird",
        "a <v1> doghouse": "a dog doghouse",
        "nothing  here": "nothing  here",
    }.items():
        assert host_text.replace_tokens(text, {name: token.class_word for name, token in tokens.items()}) == want


def test_an_embedding_file_may_be_carried_under_its_own_name():
    """`embedding:name` of a carried token is the carried one; other files stay core's business."""
    with torch.inference_mode():
        host_text, files, Token = pack("host.text"), pack("formats.token_file"), pack("formats.token").LearnedToken
        clip = text_models.sd15()
        folder = host_text.embedding_folders(clip)[0]
        for name in ("kindred-own", "kindred-own-2"):
            files.save(Token("<x>", "", {"clip_l": torch.randn(1, 768)}), f"{folder}/{name}.safetensors")
        adjusted = Token("embedding:kindred-own", "dog", {"clip_l": torch.randn(1, 768)})
        carrying = host_text.carry_tokens(clip, [adjusted])
        for text in ("a (embedding:kindred-own:1.1) dog", "a embedding:kindred-own, dog", "a embedding:kindred-own.safetensors dog"):
            assert any(same(entry[0], adjusted.vectors["clip_l"][0]) for entry in carrying.tokenize(text)["l"][0]), text
        assert same(carrying.tokenize("a embedding:kindred-own-2 dog"), clip.tokenize("a embedding:kindred-own-2 dog"))


def test_a_token_of_another_family_is_refused():
    host_text, Token = pack("host.text"), pack("formats.token").LearnedToken
    with pytest.raises(ValueError, match="width 1024 for clip_l, this CLIP expects 768"):
        host_text.carry_tokens(text_models.sd15(), [Token("<v1>", "dog", {"clip_l": torch.zeros(1, 1024)})])
    with pytest.raises(ValueError, match="clip_h; this CLIP has clip_l"):
        host_text.carry_tokens(text_models.sd15(), [Token("<v1>", "dog", {"clip_h": torch.zeros(1, 1024)})])


@pytest.mark.parametrize("text", ["", "a b", "a,b", "x:y", "(v)", "a\\b", "embedding:", "\ue000", "v" * 65, "__metadata__"])
def test_texts_that_cannot_be_tokens(text):
    with pytest.raises(ValueError, match="token"):
        pack("formats.token").check_token_text(text)


def test_taken_names_are_known():
    host_text = pack("host.text")
    clip = text_models.sd15()
    assert "vocabulary" in host_text.clash(clip, "dog")
    assert host_text.clash(clip, "<v1>") is None
    assert "carries" in host_text.clash(host_text.carry_tokens(clip, [token_for(clip)]), "<v1>")
