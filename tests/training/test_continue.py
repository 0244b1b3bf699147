"""Which run `continue` goes on with, who may, and which states stay on the disk."""

import os
import subprocess
import sys

import pytest
import torch
from kindred_testing import ROOT, pack

ONE, TWO, THREE = ({"seed": str(seed), "steps": "4", "rank": "2"} for seed in (1, 2, 3))


def keep(root, name, identity, *steps, finished=False, age=0):
    """A run with states after `steps`, `age` seconds old; its folder's name."""
    folder = pack("training.resume").RunFolder.new(root, name)
    for step in steps:
        last = finished and step == steps[-1]
        folder.save(step, identity, {"finished": last, "weights": torch.full((4,), float(step))})
    for path in folder.path.glob("state-*"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - age))
    folder.release()
    return folder.path.name


def found(root, name, identity):
    """(folder's name, step) of the run that `continue` takes, and its notes; it is let go again."""
    result = pack("training.resume").find(root, name, identity)
    result.folder.release()
    assert result.state["weights"].tolist() == [result.step] * 4
    return result.folder.path.name, result.step


def damage(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 4
    path.write_bytes(content)


def test_the_run_whose_settings_are_these_is_found_behind_newer_ones_of_its_name(tmp_path):
    """Case 50. Three runs under one name; each is reached by its own settings, also when the newest is finished or damaged."""
    assert keep(tmp_path, "dog", ONE, 1, 2, age=300) == "dog"
    assert keep(tmp_path, "dog", TWO, 3, age=200) == "dog_2"
    assert keep(tmp_path, "dog", THREE, 4, finished=True) == "dog_3"
    assert found(tmp_path, "dog", ONE) == ("dog", 2) and found(tmp_path, "dog", TWO) == ("dog_2", 3) and found(tmp_path, "dog", THREE) == ("dog_3", 4)
    damage(tmp_path / "dog" / "state-00000002.safetensors")
    assert found(tmp_path, "dog", ONE) == ("dog", 1)
    with pytest.raises(ValueError, match="no interrupted training 'do' to continue"):
        found(tmp_path, "do", ONE)
    assert found(tmp_path, "dog_2", TWO) == ("dog_2", 3)
    with pytest.raises(ValueError, match=r"seed was 2, is 1\. Set it back"):
        found(tmp_path, "dog_2", ONE)  # a name that is given in full means that folder


def test_of_several_that_fit_the_one_that_has_come_furthest(tmp_path):
    keep(tmp_path, "dog", ONE, 1, 2, age=300)
    keep(tmp_path, "dog", ONE, 1)
    assert found(tmp_path, "dog", ONE) == ("dog", 2)
    keep(tmp_path, "dog", ONE, 4, finished=True)
    assert found(tmp_path, "dog", ONE) == ("dog_3", 4)


def test_where_none_fits_the_nearest_is_named_with_what_differs(tmp_path):
    """Case 50."""
    keep(tmp_path, "dog", {**ONE, "rank": "8", "steps": "9"}, 1)
    keep(tmp_path, "dog", TWO, 3, age=100)
    with pytest.raises(ValueError, match=r"nearest one, 'dog_2' after step 3, seed was 2, is 1\. Set it back"):
        found(tmp_path, "dog", ONE)


def test_a_run_with_nothing_but_damage_is_refused_with_the_reasons(tmp_path):
    """Case 51."""
    keep(tmp_path, "dog", ONE, 1, 2)
    for path in (tmp_path / "dog").glob("state-*"):
        damage(path)
    with pytest.raises(ValueError, match=r"No state of the training 'dog' can be used\. .*new run.*00000002.*checksum.*00000001.*checksum"):
        found(tmp_path, "dog", ONE)
    for path in (tmp_path / "dog").glob("state-*"):
        path.write_bytes(path.read_bytes().replace(b'"version":"2"', b'"version":"3"'))
    with pytest.raises(ValueError, match=r"can be used\. .*00000001.*has version '3', and this version of Kindred reads '2'"):
        found(tmp_path, "dog", ONE)


def test_a_damaged_state_goes_when_the_next_is_written_and_the_good_one_stays(tmp_path):
    keep(tmp_path, "dog", ONE, 1, 2)
    damage(tmp_path / "dog" / "state-00000002.safetensors")
    result = pack("training.resume").find(tmp_path, "dog", ONE)
    assert result.step == 1 and "checksum" in result.notes[0]
    result.folder.save(3, ONE, {"finished": False, "weights": torch.full((4,), 3.0)})
    result.folder.release()
    assert sorted(path.name for path in (tmp_path / "dog").iterdir()) == ["state-00000001.safetensors", "state-00000003.safetensors"]


HOLDER = """
import pathlib, sys
sys.path.append(sys.argv[1])
import kindred_standalone
resume = kindred_standalone.load("training.resume")
found = resume.find(pathlib.Path(sys.argv[2]), "dog", {"seed": "1", "steps": "4", "rank": "2"})
print(found.step, flush=True)
sys.stdin.read()
"""


def test_two_processes_never_go_on_with_one_run(tmp_path):
    """The second is refused while the first lives, and takes over when it is killed."""
    keep(tmp_path, "dog", ONE, 2)
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(ROOT / "host" / "standalone"), str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"2\n"
        with pytest.raises(ValueError, match="'dog' is running in another process"):
            found(tmp_path, "dog", ONE)
        assert keep(tmp_path, "dog", ONE, 1) == "dog_2"  # a new run is one of its own
        assert found(tmp_path, "dog", ONE) == ("dog_2", 1)
    finally:
        process.kill()
        process.communicate()
    assert found(tmp_path, "dog", ONE) == ("dog", 2)


def test_a_folder_that_is_deleted_in_mid_run_is_made_again_and_never_shared(tmp_path):
    resume = pack("training.resume")
    folder = resume.RunFolder.new(tmp_path, "dog")

    def delete():
        for path in folder.path.iterdir():
            path.unlink()
        folder.path.rmdir()

    def save(step):
        folder.save(step, ONE, {"finished": False, "weights": torch.full((4,), float(step))})

    save(1)
    delete()
    save(2)
    assert (tmp_path / "dog" / "state-00000002.safetensors").is_file()
    delete()
    other = resume.RunFolder.new(tmp_path, "dog")
    save(3)
    assert (tmp_path / "dog_2" / "state-00000003.safetensors").is_file() and not list((tmp_path / "dog").glob("state-*"))
    other.release()
    folder.release()


def test_the_folder_of_a_run_that_was_killed_before_its_first_state_goes(tmp_path):
    """Case 52. The lock file alone is left of it; a living run that has no state yet looks the same, and stays."""
    resume = pack("training.resume")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "lock").touch()
    living = resume.RunFolder.new(tmp_path, "living")
    resume.clear_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["living"]
    living.release()


def test_the_last_finished_runs_stay_and_all_that_are_not_finished(tmp_path):
    """Case 52: finished states are cleared by a rule. What a living process uses stays as well; so do previews."""
    resume = pack("training.resume")
    for index in range(resume.FINISHED + 3):
        keep(tmp_path, f"done{index}", ONE, 2, 4, finished=True, age=100 - index)
    keep(tmp_path, "open", ONE, 1, 2, age=1000)
    (tmp_path / "done1" / "previews").mkdir()
    held = pack("formats.locks").Lock.take(tmp_path / "done0" / "lock")
    resume.clear_finished(tmp_path)
    held.release()
    left = {path.name: sorted(file.name for file in path.iterdir()) for path in tmp_path.iterdir()}
    state = ["state-00000004.safetensors"]
    assert left == {
        "done0": state, "done1": ["previews"], "done3": state, "done4": state, "done5": state, "open": ["state-00000001.safetensors", "state-00000002.safetensors"],
    }  # fmt: skip
