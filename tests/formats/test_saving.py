"""Saving beside others: names that belong to another concept or tool, several processes at once, kills at every moment. Case 46.

KINDRED_TRIES sets how often the tests with chance in them try (100 for a figure to be told).
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from kindred_testing import ROOT, pack

TRIES = int(os.environ.get("KINDRED_TRIES", "25"))
SAVER = Path(__file__).with_name("saver.py")
BOTH = ["<v1>", "<v2>"]


def save(folder, name, value=0.5, tokens=("<v1>",), **changes):
    learned = [pack("formats.token").LearnedToken(text, "dog", {"clip_l": torch.full((2, 8), value)}) for text in tokens]
    lora = {"layer.diff": torch.full((2, 2), value)}
    return pack("formats.concept_file").save(lora, learned, name, folder / "loras", folder / "embeddings", dtype=torch.float32, **changes)


def values(folder, name) -> set[float]:
    """Every number in the concept: one where it is whole. ValueError where it cannot be loaded."""

    def find(file):
        return next((folder / "embeddings").rglob(file), None)

    lora, tokens = pack("formats.concept_file").load(folder / "loras" / f"{name}.safetensors", {"clip_l": 8}, find)
    parts = [*lora.values(), *(vectors for token in tokens for vectors in token.vectors.values())]
    return {float(number) for part in parts for number in part.unique()}


def saved(folder) -> list[str]:
    return sorted(path.name.removesuffix(".safetensors") for path in (folder / "loras").glob("[!.]*"))


def visible(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")}


# -- names that are taken ------------------------------------------------------------------------------------------------


def test_a_second_token_never_takes_the_embedding_of_another_concept(tmp_path):
    save(tmp_path, "pets-v2", 0.25)
    pets = save(tmp_path, "pets", 0.75, BOTH)
    assert pets.name == "pets_2" and [path.stem for path in pets.embeddings] == ["pets_2", "pets_2-v2"] and "pets-v2" in pets.note
    assert values(tmp_path, "pets-v2") == {0.25} and values(tmp_path, "pets_2") == {0.75}
    assert save(tmp_path, "pets", 0.5, BOTH, overwrite=True).name == "pets_3" and values(tmp_path, "pets-v2") == {0.25}


@pytest.mark.parametrize("file", ["bear.pt", "bear.bin", "Bear.SAFETENSORS", "below/bear.pt", "bear", "elsewhere/deep/BEAR.bin"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_whatever_the_host_finds_by_a_name_keeps_it(tmp_path, file, overwrite):
    """`embedding:bear` of an older workflow means the same file before and after, with and without overwrite."""
    other = tmp_path / file if file.startswith("elsewhere") else tmp_path / "embeddings" / file
    other.parent.mkdir(parents=True)
    other.write_bytes(b"another tool's")
    bear = save(tmp_path, "bear", overwrite=overwrite, embedding_folders=[tmp_path / "elsewhere"])
    assert bear.name == "bear_2" and other.name in bear.note
    assert other.read_bytes() == b"another tool's" and values(tmp_path, "bear_2") == {0.5}


@pytest.mark.parametrize("kind", ["file", "link", "LoRA of another tool", "LoRA in another folder", "embedding of another tool"])
def test_overwrite_replaces_only_the_concept_of_that_name(tmp_path, kind):
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(b"mine")
    place = tmp_path / ("other" if "another folder" in kind else "embeddings" if "embedding" in kind else "loras") / "dog.safetensors"
    place.parent.mkdir()
    if kind == "link":
        place.symlink_to(outside)
    elif kind == "file":
        place.write_bytes(b"mine")
    else:
        pack("formats.safefile").write({"x": torch.zeros(1)}, place, {"ss_output_name": "dog"})
    before = place.read_bytes()
    dog = save(tmp_path, "dog", overwrite=True, lora_folders=[tmp_path / "other"])
    assert dog.name == "dog_2" and dog.note.endswith("is not part of a saved concept 'dog', so it was not replaced.")
    assert place.read_bytes() == before and place.is_symlink() == (kind == "link") and outside.read_bytes() == b"mine"


def test_overwrite_leaves_no_token_of_the_replaced_concept(tmp_path):
    """Two tokens, then one, then two: each time exactly the files of the new concept; a neighbour's and a foreign file stay."""
    save(tmp_path, "pets", 0.25, BOTH)
    save(tmp_path, "pets-v3", 0.125)
    one = save(tmp_path, "pets", 0.5, overwrite=True)
    assert one.name == "pets" and not one.note and [path.stem for path in one.removed] == ["pets-v2"]
    assert visible(tmp_path) == {f"{kind}/{name}.safetensors" for kind in ("loras", "embeddings") for name in ("pets", "pets-v3")}
    assert save(tmp_path, "pets", 0.75, BOTH, overwrite=True).name == "pets" and values(tmp_path, "pets") == {0.75}
    assert values(tmp_path, "pets-v3") == {0.125}


def test_a_name_that_only_differs_in_case_is_taken(tmp_path):
    save(tmp_path, "Dog", 0.25)
    assert [save(tmp_path, "dog", 0.5, overwrite=overwrite).name for overwrite in (False, True)] == ["dog_2", "dog_3"]
    assert save(tmp_path, "two", tokens=["<V>", "<a>", "<A>"]).embeddings[2].stem == "two-3"


def test_a_name_taken_between_the_look_and_the_write_is_not_replaced(tmp_path, monkeypatch):
    """Another program creates the second embedding at the last moment: nothing of the first try stays."""
    exclusive = pack("formats.exclusive")
    create, late = exclusive.create, tmp_path / "embeddings" / "pets-v2.safetensors"

    def slow(part, path):
        if path == late:
            late.write_bytes(b"faster")
        create(part, path)

    monkeypatch.setattr(exclusive, "create", slow)
    pets = save(tmp_path, "pets", tokens=BOTH)
    assert pets.name == "pets_2" and "same moment" in pets.note and late.read_bytes() == b"faster"
    assert visible(tmp_path) == {"embeddings/pets-v2.safetensors", *(f"embeddings/{path.name}" for path in pets.embeddings), "loras/pets_2.safetensors"}


def test_a_rename_that_fails_leaves_no_empty_file_under_the_name(tmp_path):
    """Where hard links do not work the name is reserved with an empty file, which would look like a damaged concept."""
    with pytest.raises(FileNotFoundError):
        pack("formats.exclusive").create(tmp_path / "deleted meanwhile.part", tmp_path / "dog.safetensors")
    assert not list(tmp_path.iterdir())


# -- a LoRA and an embedding of two trainings ----------------------------------------------------------------------------


def test_an_embedding_of_another_training_is_refused(tmp_path):
    save(tmp_path, "dog", 0.25)
    old = (tmp_path / "embeddings/dog.safetensors").read_bytes()
    save(tmp_path, "dog", 0.5, overwrite=True)
    (tmp_path / "embeddings/dog.safetensors").write_bytes(old)
    with pytest.raises(ValueError, match=r"'dog\.safetensors' is not the one that the concept 'dog' was saved with"):
        values(tmp_path, "dog")


def test_what_a_killed_process_left_is_finished_or_cleared(tmp_path):
    """The LoRA got its name and the embedding did not: the concept is whole, and the next load or save gives the embedding its name. What no
    LoRA asks for is cleared after a day: a host that shares only the embeddings may still need it."""
    dog = save(tmp_path, "dog", 0.25)
    entry = pack("formats.manifest").parse(pack("formats.manifest").metadata_of(dog.lora))[0]
    hidden = dog.embeddings[0].rename(tmp_path / "embeddings" / entry.part)
    assert values(tmp_path, "dog") == {0.25} and dog.embeddings[0].is_file() and not hidden.exists()
    hidden = dog.embeddings[0].rename(hidden)
    save(tmp_path, "cat")
    assert dog.embeddings[0].is_file() and not hidden.exists()
    stray = tmp_path / "embeddings" / f".kindred-token-{'0' * 24}.part"
    stray.write_bytes(b"half")
    save(tmp_path, "cat")
    assert stray.is_file()
    os.utime(stray, (time.time() - 90_000,) * 2)
    save(tmp_path, "cat")
    assert not stray.exists()


# -- the disk ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_is_a_sentence_and_changes_nothing(tmp_path, overwrite):
    import resource

    save(tmp_path, "dog", 0.25, BOTH)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))  # the embeddings still fit, the LoRA does not
    try:
        with pytest.raises(OSError, match=r"'dog' could not be saved: .* No file was changed"):
            big = {"layer.diff": torch.ones(64, 64)}
            token = pack("formats.token").LearnedToken("<v1>", "dog", {"clip_l": torch.ones(1, 2)})
            pack("formats.concept_file").save(big, [token], "dog", tmp_path / "loras", tmp_path / "embeddings", overwrite=overwrite)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_folder_that_cannot_be_written_to_is_a_sentence(tmp_path):
    (tmp_path / "embeddings").write_text("a file")
    with pytest.raises(OSError, match=r"'dog' could not be saved: .* make the folders writable"):
        save(tmp_path, "dog")
    assert visible(tmp_path) == {"embeddings"}


# -- several processes, and kills ----------------------------------------------------------------------------------------


class Saver:
    """A real process of saver.py."""

    def __init__(self):
        command = [sys.executable, str(SAVER), str(ROOT / "host" / "standalone")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def say(self, folder, **command) -> None:
        self.process.stdin.write(json.dumps({"folder": str(folder), **command}) + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        line = self.process.stdout.readline().strip()
        assert line, f"saver.py ended with {self.process.wait()}"
        return line


@pytest.fixture(scope="module")
def savers():
    """Two of them."""
    running = [Saver(), Saver()]
    try:
        for saver in running:
            assert saver.answer() == "ready"
        yield running
    finally:
        for saver in running:
            saver.process.kill()
            saver.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["new names", "one name overwritten", "names that meet in a token"])
def test_two_processes_that_save_at_once_save_two_whole_concepts(tmp_path, savers, kind):
    first, second = savers
    overwrite, whole = kind == "one name overwritten", 0
    for attempt in range(TRIES):
        at = time.time() + 0.01
        name = "always" if overwrite else f"concept{attempt}"
        names = [name, f"{name}-v2" if kind == "names that meet in a token" else name]
        values_of = [2.0 * attempt + 1, 2.0 * attempt + 2]
        for saver, name, value in zip((first, second), names, values_of, strict=True):
            saver.say(tmp_path, name=name, value=value, tokens=BOTH, overwrite=overwrite, at=at)
        got = [saver.answer() for saver in (first, second)]
        if overwrite:
            whole += got == names and values(tmp_path, got[0]) in [{value} for value in values_of]
        else:
            whole += got[0] != got[1] and [values(tmp_path, name) for name in got] == [{value} for value in values_of]
    print(f"\n{kind}: {whole} of {TRIES} concurrent saves whole")
    assert whole == TRIES
    assert len(saved(tmp_path)) == (1 if overwrite else 2 * TRIES) and not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_a_load_beside_a_process_that_saves_over_it_gets_one_whole_concept(tmp_path, savers):
    saver, seen = savers[0], set()
    save(tmp_path, "dog", 0.25, BOTH)
    saver.say(tmp_path, name="dog", value=1.0, tokens=BOTH, overwrite=True, repeat=True)
    child = int(saver.answer())
    try:
        for _ in range(20 * TRIES):
            found = values(tmp_path, "dog")
            assert len(found) == 1, found
            seen |= found
    finally:
        os.kill(child, signal.SIGKILL)
        saver.answer()
    print(f"\n{20 * TRIES} loads beside a saving process: {len(seen)} different whole concepts")
    assert len(seen) > 2


def check_after_kill(folder, overwrite, before: set[float], after: float) -> str:
    """Every concept that Load Concept lists is whole: the old or the new one; another save works at once, and clears what was left."""
    with contextlib.suppress(FileNotFoundError):
        for name in saved(folder):
            found = values(folder, name)
            assert len(found) == 1 and (name != "dog" or not overwrite or found <= before | {after}), (name, found)
    now = values(folder, "dog") if "dog" in saved(folder) else set()
    assert now or not before
    again = save(folder, "next", 0.125, overwrite=True)
    assert again.name == "next" and values(folder, "next") == {0.125}
    assert not list((folder / "loras").glob(".*")), "a killed process's LoRA stays"
    return "new" if after in now else "old"


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("old", [[], ["<v1>"], BOTH])
def test_a_kill_before_any_change_of_the_disk_leaves_the_old_concept_or_the_new_one(tmp_path, savers, overwrite, old):
    """A real SIGKILL before the first, the second ... the last call of a save that changes files."""
    saver, left = savers[0], []
    for number in range(1, 100):
        folder = tmp_path / str(number)
        if old:
            save(folder, "dog", 1.0, old)
        saver.say(folder, name="dog", value=2.0, tokens=BOTH, overwrite=overwrite, killed=number)
        code = int(saver.answer())
        if code == 0:
            break
        assert code == -signal.SIGKILL
        left.append(check_after_kill(folder, overwrite, {1.0} if old else set(), 2.0))
    print(f"\noverwrite {overwrite}, {len(old)} old tokens: {len(left)} kills, {left.count('old')} left the old concept, {left.count('new')} the new one")
    assert code == 0 and len(left) > 8 and "old" in left and ("new" in left or (old and not overwrite))


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kill_at_a_random_moment_leaves_whole_concepts(tmp_path, savers, overwrite):
    saver, draw, whole = savers[0], random.Random(1), 0
    for attempt in range(TRIES):
        start = 1000.0 * (attempt + 1)
        saver.say(tmp_path, name="dog", value=start, tokens=BOTH, overwrite=overwrite, repeat=True)
        child = int(saver.answer())
        time.sleep(draw.uniform(0.0, 0.25))
        os.kill(child, signal.SIGKILL)
        assert int(saver.answer()) == -signal.SIGKILL
        assert all(len(values(tmp_path, name)) == 1 for name in saved(tmp_path))
        whole += 1
    print(f"\noverwrite {overwrite}: {whole} of {TRIES} kills left whole concepts, {len(saved(tmp_path))} of them")
    save(tmp_path, "next")
    assert not list((tmp_path / "loras").glob(".*"))
