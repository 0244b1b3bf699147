"""Saved concepts: real files, real damage, a real kill."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from kindred_testing import ROOT, pack

WIDTHS = {"clip_l": 8}


def made(text="<v1>", value=0.5):
    return pack("formats.token").LearnedToken(text, "dog", {"clip_l": torch.full((2, 8), value)}, {"steps": "3"})


def save(folder, name="dog", **changes):
    lora = {"diffusion_model.x.attn2.to_k.diff": torch.randn(4, 8, generator=torch.Generator().manual_seed(1))}
    return pack("formats.concept_file").save(lora, changes.pop("tokens", [made()]), name, folder / "loras", folder / "embeddings", **changes)


def load(saved):
    folder = saved.embeddings[0].parent
    return pack("formats.concept_file").load(saved.lora, WIDTHS, lambda file: folder / file if (folder / file).is_file() else None)


def test_round_trip_of_several_tokens(tmp_path):
    saved = save(tmp_path, "мой пёс", dtype=torch.float32, tokens=[made(), made("<v2>", 0.25)])
    lora, tokens = load(saved)
    assert torch.equal(lora["diffusion_model.x.attn2.to_k.diff"], torch.randn(4, 8, generator=torch.Generator().manual_seed(1)))
    assert [(token.text, token.class_word, token.metadata["steps"]) for token in tokens] == [("<v1>", "dog", "3"), ("<v2>", "dog", "3")]
    assert torch.equal(tokens[1].vectors["clip_l"], torch.full((2, 8), 0.25))
    assert [path.name for path in saved.embeddings] == ["мой пёс.safetensors", "мой пёс-v2.safetensors"]
    assert oct(saved.lora.stat().st_mode & 0o777) == oct(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_nothing_is_lost_without_overwrite(tmp_path):
    first, second = save(tmp_path), save(tmp_path, tokens=[made(value=0.75)])
    assert (first.lora.name, second.lora.name) == ("dog.safetensors", "dog_2.safetensors")
    assert load(first)[1][0].vectors["clip_l"][0, 0] == 0.5 and load(second)[1][0].vectors["clip_l"][0, 0] == 0.75
    assert save(tmp_path, overwrite=True).lora == first.lora


def test_the_same_content_gives_the_same_bytes(tmp_path):
    metadata = {f"key{index}": "x" for index in range(12)}
    files = [save(tmp_path / name, metadata=metadata) for name in "ab"]
    assert files[0].lora.read_bytes() == files[1].lora.read_bytes()
    assert files[0].embeddings[0].read_bytes() == files[1].embeddings[0].read_bytes()


@pytest.mark.parametrize("name", ["../dog", "/etc/dog", "a/b", "a\\b", "C:dog", "CON", "com1.txt", "dog.", ".dog", "", "  ", "a\0b", "x" * 300])
def test_names_that_lead_elsewhere_or_nowhere_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        save(tmp_path, name)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_damage_is_told_with_the_path(tmp_path):
    saved = save(tmp_path)
    whole = saved.lora.read_bytes()
    for damaged in (whole[:60], whole[:-8], b"", b"\xff" * 64, whole[:8] + b"{" * 20 + whole[28:]):
        saved.lora.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"dog\.safetensors"):
            load(saved)
    saved.lora.write_bytes(whole)
    saved.embeddings[0].unlink()
    with pytest.raises(ValueError, match=r"needs the embedding 'dog\.safetensors' for its token '<v1>'"):
        load(saved)


def test_a_manifest_cannot_lead_out_of_the_folder(tmp_path):
    saved = save(tmp_path)
    safefile = pack("formats.safefile")
    tensors, metadata = safefile.read(saved.lora)
    metadata["kindred.tokens"] = json.dumps([{"token": "<v1>", "class_word": "dog", "file": "../../secret.safetensors"}])
    safefile.write(tensors, saved.lora, metadata)
    with pytest.raises(ValueError, match=r"secret"):
        load(saved)


def test_a_weight_beyond_half_precision_is_said(tmp_path):
    with pytest.raises(ValueError, match="Save in float32"):
        pack("formats.concept_file").save({"a.diff": torch.tensor([1e6])}, [made()], "big", tmp_path, tmp_path)
    assert not list(tmp_path.rglob("*.safetensors"))


WRITER = """
import sys, pathlib, torch
sys.path.append(sys.argv[1])
import kindred_standalone
safefile = kindred_standalone.load("formats.safefile")
print("ready", flush=True)
value = 0
while True:
    value += 1
    safefile.write({"x": torch.full((400_000,), float(value))}, pathlib.Path(sys.argv[2]), {"value": str(value)})
"""


@pytest.mark.slow
def test_a_kill_while_saving_leaves_the_old_file_or_the_new_one(tmp_path):
    """Eight real kills at arbitrary moments: every time the file is whole and of one piece."""
    path = tmp_path / "state.safetensors"
    safefile = pack("formats.safefile")
    for attempt in range(8):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(ROOT / "host" / "standalone"), str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.05 + 0.025 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if path.exists():
            tensors, metadata = safefile.read(path)
            assert torch.equal(tensors["x"], torch.full((400_000,), float(metadata["value"])))
    assert path.exists()
