"""Embedding files: written as everybody reads them, read as everybody writes them, and what must be refused."""

import os
import pickle
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kindred_testing import ROOT, pack
from safetensors import safe_open
from safetensors.torch import save_file

SD15, SDXL = {"clip_l": 768}, {"clip_l": 768, "clip_g": 1280}


def token(text="<v1>", vectors=None, **metadata):
    return pack("formats.token").LearnedToken(text, "dog", vectors or {"clip_l": torch.randn(2, 768)}, metadata)


def core_reads(path: Path, width: int, key: str):
    from comfy.sd1_clip import load_embed

    return load_embed(path.stem, [str(path.parent)], width, key)


def test_one_encoder_is_one_tensor_named_by_the_token_and_core_reads_it(tmp_path):
    files = pack("formats.token_file")
    learned = token(steps="500")
    path = files.save(learned, tmp_path / "my dog.safetensors")
    with safe_open(path, framework="pt") as file:
        assert list(file.keys()) == ["<v1>"]
        assert file.metadata()["kindred.class_word"] == "dog"
    assert torch.equal(core_reads(path, 768, "clip_l"), learned.vectors["clip_l"])
    back = files.load(path, SD15)
    assert (back.text, back.class_word, back.metadata) == ("<v1>", "dog", {"steps": "500"})
    assert torch.equal(back.vectors["clip_l"], learned.vectors["clip_l"])
    assert files.load(path, SD15, text="<other>").text == "<other>"


def test_two_encoders_are_cores_sdxl_layout(tmp_path):
    files = pack("formats.token_file")
    learned = token(vectors={"clip_l": torch.randn(1, 768), "clip_g": torch.randn(3, 1280)})
    path = files.save(learned, tmp_path / "xl.safetensors")
    for key, width in SDXL.items():
        assert torch.equal(core_reads(path, width, key), learned.vectors[key])
        assert torch.equal(files.load(path, SDXL).vectors[key], learned.vectors[key])


LAYOUTS = {
    "a1111.pt": lambda v, g: {"string_to_token": {"*": 265}, "string_to_param": {"*": v}, "name": "my-style", "step": 500},
    "diffusers.bin": lambda v, g: {"<cat-toy>": v[0]},
    "kohya.pt": lambda v, g: {"emb_params": v},
    "list.pt": lambda v, g: [{"clip_l": v}, {"clip_g": g}],
    "diffusers.safetensors": lambda v, g: {"<cat-toy>": v},
    "kohya-xl.safetensors": lambda v, g: {"clip_l": v, "clip_g": g},
    "pivotal.safetensors": lambda v, g: {"text_encoders_0": v, "text_encoders_1": g},
    "bundled.safetensors": lambda v, g: {"lora_unet_x.lora_up.weight": torch.ones(2, 2), "bundle_emb.hero.string_to_param.*": v},
    "bundled-xl.safetensors": lambda v, g: {"bundle_emb.hero.clip_l": v, "bundle_emb.hero.clip_g": g},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_files_that_people_own(tmp_path, name):
    files = pack("formats.token_file")
    v, g = torch.randn(2, 768).half(), torch.randn(2, 1280)
    content, path = LAYOUTS[name](v, g), tmp_path / name
    save_file(content, path) if name.endswith("safetensors") else torch.save(content, path)
    read = files.load(path, SDXL)
    want = v[:1] if name == "diffusers.bin" else v
    assert torch.equal(read.vectors["clip_l"], want.float()) and read.vectors["clip_l"].dtype == torch.float32
    if any(part in name for part in ("xl", "list", "pivotal")):
        assert torch.equal(read.vectors["clip_g"], g)
    expected = {
        "a1111.pt": "my-style",
        "diffusers.bin": "<cat-toy>",
        "diffusers.safetensors": "<cat-toy>",
        "bundled.safetensors": "hero",
        "bundled-xl.safetensors": "hero",
    }
    assert read.text == expected.get(name, f"<{path.stem}>")


@pytest.mark.parametrize("age", ["today", "torch 1.10"])
def test_textual_inversions_own_file_loads(tmp_path, age):
    """embeddings_gs-6099.pt: the authors keep a torch.nn.ParameterDict, which is a class and no dict."""
    vectors = torch.randn(2, 768)
    path = tmp_path / "embeddings_gs-6099.pt"

    def save(**held):
        held = torch.nn.ParameterDict({name.replace("star", "*"): torch.nn.Parameter(value) for name, value in held.items()})
        if age != "today":
            del held.__dict__["_keys"]  # torch's own bookkeeping of later years
        torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": held}, path)

    save(star=vectors)
    read = pack("formats.token_file").load(path, SD15)
    assert torch.equal(read.vectors["clip_l"], vectors) and read.text == "<embeddings_gs-6099>"
    save(star=vectors, second=vectors * 2)
    with pytest.raises(ValueError, match=r"'\*', 'second'. Select one"):
        pack("formats.token_file").load(path, SD15)
    assert torch.equal(pack("formats.token_file").load(path, SD15, text="second").vectors["clip_l"], vectors * 2)


def test_vectors_that_no_encoder_takes_are_said(tmp_path, caplog):
    """An SDXL embedding on SD 1.5; and what OneTrainer adds behind the encoder, which nobody here can add."""
    files, path = pack("formats.token_file"), tmp_path / "xl.safetensors"
    save_file({"clip_l": torch.randn(1, 768), "clip_g": torch.randn(1, 1280)}, path)
    (note,) = files.load(path, SD15).notes
    assert "vectors for clip_g are not used" in note and note in caplog.text
    assert not files.load(path, SDXL).notes
    save_file({"bundle_emb.hero.clip_l": torch.randn(1, 768), "bundle_emb.hero.clip_l_out": torch.randn(1, 768)}, path)
    assert "clip_l_out" in files.load(path, SD15).notes[0]
    save_file({"bundle_emb.hero.clip_l_out": torch.randn(1, 768)}, path)
    with pytest.raises(ValueError, match="clip_l_out of width 768"):
        files.load(path, SD15)


def test_a_lora_with_several_bundles_asks_which(tmp_path):
    path = tmp_path / "two.safetensors"
    save_file({"bundle_emb.hero.clip_l": torch.ones(1, 768), "bundle_emb.villain.clip_l": torch.zeros(1, 768)}, path)
    with pytest.raises(ValueError, match="'hero', 'villain'"):
        pack("formats.token_file").load(path, SD15)
    assert pack("formats.token_file").load(path, SD15, text="villain").vectors["clip_l"].sum() == 0


def test_the_width_tells_the_encoder_and_the_wrong_one_is_refused(tmp_path):
    files = pack("formats.token_file")
    path = files.save(token(), tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"width 768.*clip_h 1024"):
        files.load(path, {"clip_h": 1024})
    save_file({"emb_params": torch.randn(1, 1280)}, tmp_path / "g.safetensors")
    assert list(files.load(tmp_path / "g.safetensors", SDXL).vectors) == ["clip_g"]
    save_file({"clip_l": torch.randn(1, 1024)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="width 1024 for clip_l, this CLIP expects 768"):
        files.load(tmp_path / "odd.safetensors", SDXL)


def damaged(kind: str, good: bytes) -> bytes:
    size = int.from_bytes(good[:8], "little")
    header = good[8 : 8 + size]
    other = {
        "empty": b"",
        "three bytes": good[:3],
        "truncated": good[:-100],
        "header too long": (10**12).to_bytes(8, "little") + good[8:],
        "no json": good[:8] + b"x" * size + good[8 + size :],
        "hole": None,
        "overlap": None,
        "garbage": os.urandom(4096),
    }
    if other[kind] is not None:
        return other[kind]
    new = header.replace(b"[0,6144]", b"[4,6144]" if kind == "hole" else b"[0,6140]")
    assert new != header
    return good[:8] + new + good[8 + size :]


@pytest.mark.parametrize("kind", ["empty", "three bytes", "truncated", "header too long", "no json", "hole", "overlap", "garbage"])
def test_damaged_safetensors_are_one_error_with_the_path(tmp_path, kind):
    files = pack("formats.token_file")
    path = files.save(token(), tmp_path / "bad.safetensors")
    path.write_bytes(damaged(kind, path.read_bytes()))
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        files.load(path, SD15)


class Harmful:
    def __reduce__(self):
        return (os.system, ("touch harmed",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_that_another_process_renames_in_the_meantime_is_an_error_with_the_path(tmp_path, monkeypatch):
    """Between two looks at a hidden file, the process that saves may give it its name: Load Concept then tries the name."""
    path, pickled = tmp_path / ".kindred-token-0.part", pack("formats.pickled")
    save_file({"<v1>": torch.zeros(1, 8)}, path)
    look = pickled.is_safetensors
    monkeypatch.setattr(pickled, "is_safetensors", lambda path: path.unlink() or look(path))
    with pytest.raises(ValueError, match=r"cannot be read .*kindred-token-0\.part"):
        pack("formats.token_file").load(path, {"clip_l": 8})


def test_a_pickle_that_runs_code_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, write in (("raw.pt", lambda p: p.write_bytes(pickle.dumps(Harmful()))), ("zip.bin", lambda p: torch.save({"<v1>": Harmful()}, p))):
        write(tmp_path / name)
        with pytest.raises(ValueError, match="without running code"):
            pack("formats.token_file").load(tmp_path / name, SD15)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"<v1>": torch.full((1, 768), float("nan"))},
        {"<v1>": torch.ones(1, 768, dtype=torch.int32)},
        {"<v1>": torch.ones(0, 768)},
        {f"w{i}": torch.ones(2) for i in range(70)},
    ],
)
def test_what_is_no_embedding_is_said(tmp_path, content):
    save_file(content, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        pack("formats.token_file").load(tmp_path / "x.safetensors", SD15)


@pytest.mark.parametrize(
    "name",
    [
        "CON",
        "con.safetensors",
        "a:b.safetensors",
        "dot.",
        "x" * 300,
        "",
        " ",
        ".safetensors",
        "a/b",
        "a\\b",
        "nul\x00.safetensors",
        "com1.x",
        "a?.safetensors",
        " a",
    ],
)
def test_names_that_no_file_may_have(name):
    with pytest.raises(ValueError):
        pack("formats.names").check_file_name(name)


@pytest.mark.parametrize("text", ["<v1>", "CON", "a:b", "dot.", "дракон", "犬" * 200, "...", "embedding:x/y", "<>", "a b"])
def test_every_token_has_a_file_name(text):
    files = pack("formats.names")
    assert files.check_file_name(files.file_name(text) + ".safetensors")


def test_unicode_from_end_to_end(tmp_path):
    files = pack("formats.token_file")
    path = files.save(token("<犬ñ>", steps="пять"), tmp_path / "собака 犬.safetensors")
    back = files.load(path, SD15)
    assert back.text == "<犬ñ>" and back.metadata == {"steps": "пять"}


def test_outside_places_are_not_found(tmp_path):
    files = pack("formats.token_file")
    inside, outside = tmp_path / "embeddings", tmp_path / "secret"
    (inside / "sub").mkdir(parents=True)
    outside.mkdir()
    files.save(token(), outside / "s.safetensors")
    files.save(token(), inside / "sub" / "ok.safetensors")
    (inside / "link.safetensors").symlink_to(outside / "s.safetensors")
    assert files.find_file("embedding:sub/ok", [str(inside)]).name == "ok.safetensors"
    assert files.find_file("ok", str(inside)).name == "ok.safetensors"
    for name in ("../secret/s", str(outside / "s.safetensors"), "link", "a\x00b", "", "..\\secret\\s", "missing"):
        with pytest.raises(ValueError):
            files.find_file(name, [str(inside)])
    with pytest.raises(ValueError, match="link"):
        files.save(token(), inside / "link.safetensors")


def test_mode_follows_the_umask_and_nothing_is_left_beside(tmp_path):
    files = pack("formats.token_file")
    path = files.save(token(), tmp_path / "a.safetensors")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileExistsError):
        files.save(token(), path, overwrite=False)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    files = pack("formats.token_file")
    path = files.save(token(), tmp_path / "a.safetensors")
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.save(token(), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_killed_while_saving_the_file_is_whole(tmp_path):
    """A real process writes without end and is killed: whatever stands there afterwards loads."""
    script = f"""
import sys, torch
sys.path.append({str(ROOT / "host" / "standalone")!r})
import kindred_standalone
token_file, LearnedToken = kindred_standalone.load("formats.token_file"), kindred_standalone.load("formats.token").LearnedToken
i = 0
while True:
    token_file.save(LearnedToken("<v1>", "dog", {{"clip_l": torch.full((64, 768), float(i))}}), {str(tmp_path / "a.safetensors")!r})
    i += 1
    print(i, flush=True)
"""
    for saves in (2, 5, 9):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        try:
            for _ in range(saves):
                process.stdout.readline()
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        vectors = pack("formats.token_file").load(tmp_path / "a.safetensors", SD15).vectors["clip_l"]
        assert vectors.shape == (64, 768) and (vectors == vectors[0, 0]).all() and vectors[0, 0] >= saves - 1
