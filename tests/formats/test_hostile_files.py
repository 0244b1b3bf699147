"""Files that somebody else made, on purpose or by accident: named, in a sentence, within bounds of memory and time."""

import zipfile

import pytest
import torch
from kindred_testing import pack


def compressed(path):
    """Under 600 KB that unpack to 600 MB."""
    torch.save({"<v1>": torch.ones(1, 768)}, path.with_suffix(".whole"))
    with zipfile.ZipFile(path.with_suffix(".whole")) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in whole.infolist():
            with archive.open(entry.filename, "w") as file:
                for _ in range(600 if entry.filename.endswith("data/0") else 0):
                    file.write(b"\0" * 10**6)
                if not entry.filename.endswith("data/0"):
                    file.write(whole.read(entry))
    path.with_suffix(".whole").unlink()


def stretched(path):
    torch.save({"<v1>": torch.ones(1).expand(10**6, 768)}, path)


class Filled:
    def __reduce__(self):
        return bytearray, (10**10,)


def filled(path):
    """Ten gigabytes, from a call that torch's reader of weights makes by itself."""
    torch.save({"<v1>": Filled()}, path)


def filled_in_the_old_format(path):
    torch.save({"<v1>": Filled()}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("make", [compressed, stretched, filled, filled_in_the_old_format])
def test_a_small_embedding_does_not_unpack_to_a_large_one(tmp_path, make):
    """Case 61."""
    make(tmp_path / "small.pt")
    with pytest.raises(ValueError, match=r"(compressed|more numbers|bytearray).*small\.pt"):
        pack("formats.token_file").load(tmp_path / "small.pt", {"clip_l": 768})


def test_files_of_torch_in_both_formats_are_read(tmp_path):
    for old in (False, True):
        torch.save({"<v1>": torch.arange(768.0)[None], "shared": [torch.ones(2)] * 2}, tmp_path / "a.pt", _use_new_zipfile_serialization=not old)
        assert pack("formats.pickled").read(tmp_path / "a.pt", 2**20, "an embedding")["<v1>"][0, 5] == 5


def test_half_a_character_in_a_name_is_refused(tmp_path):
    """Found by the fuzzer: an embedding's name in a LoRA's metadata, and a name that a node is given."""
    names = pack("formats.names")
    for check in (names.check_file_name, names.safe_name):
        with pytest.raises(ValueError, match=r"contains '\\ud800'"):
            check("to\ud800ken.safetensors")
    assert names.file_name("<v\ud800>") == "v"


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    "text", [f"checkpoint = {DEEP}", "name = 5\ncheckpoint = 'a'\n[[concept]]", "concept = 5\ncheckpoint = 'a'", "checkpoint = 'a'\nconcept = [5]", "train = 'x'",
             "checkpoint = 'a'\n[[concept]]\nphotos = 'a\\u0000'\ntoken = '<v1>'\nclass_word = 'dog'", "a = " + "9" * 5000, "# " + "x" * 70_000, "a = '\\u0000'", "a." * 30_000 + "a = 1",
             f"checkpoint = 'a'\n[[concept]]\nphotos = '{'p' * 5000}'\ntoken = '<v1>'\nclass_word = 'dog'", "\xff"],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_every_problem_of_a_recipe_names_the_file(tmp_path, text):
    """Case 56."""
    recipe = pack("training.recipe")
    (tmp_path / "bad.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"^'?bad\.toml"):
        recipe.read(tmp_path / "bad.toml").concepts()


def test_metadata_that_nest_too_deep_are_damaged_metadata(tmp_path):
    """Case 56's relative: JSON inside of a file."""
    pack("formats.safefile").write({"x": torch.ones(1)}, tmp_path / "deep.safetensors", {"kindred.tokens": DEEP})
    with pytest.raises(ValueError, match=r"concept 'deep' is damaged.*nested too deeply"):
        pack("formats.concept_file").load(tmp_path / "deep.safetensors", {"clip_l": 768}, lambda name: None)
    path = tmp_path / "head.safetensors"
    path.write_bytes((2**26).to_bytes(8, "little") + b"{" + b" " * 2**20)
    with pytest.raises(ValueError, match=r"header claims 64 MB.*head\.safetensors"):
        pack("formats.safefile").read(path)
    assert pack("formats.manifest").metadata_of(path) == {}
