"""What a process leaves that is killed while it writes: the next writer removes it, and never what a living one writes."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from kindred_testing import ROOT, pack

# A process that writes one file after the other into a folder, 64 MB each, and says so.
WRITER = """
import pathlib, sys, torch
sys.path.append(sys.argv[1])
import kindred_standalone
safefile = kindred_standalone.load("formats.safefile")
state = {f"layer{i}": torch.ones(2**20) for i in range(16)}
print("ready", flush=True)
while True:
    safefile.write(state, pathlib.Path(sys.argv[2]) / "state.safetensors")
"""


@pytest.fixture
def writer(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(ROOT / "host" / "standalone"), str(folder)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    yield process, folder
    process.kill()
    process.wait()


def hidden(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def in_the_middle(folder):
    """Wait for a file in the making that holds something already."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in hidden(folder):
            try:
                if path.stat().st_size > 2**20:
                    return path
            except FileNotFoundError:
                pass
    raise AssertionError("nothing was written")


def stop(process, folder):
    """SIGSTOP in the middle of a write."""
    while True:
        in_the_middle(folder)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.05)
        if found := hidden(folder):
            return found
        process.send_signal(signal.SIGCONT)


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(writer):
    """Case 52. kill -9 in the middle of a write; before it, the same process stopped there, however long."""
    process, folder = writer
    file = pack("formats.safefile")
    (part,) = stop(process, folder)
    os.utime(part, (1, 1))  # not even if the clocks say that it has been so for years
    file.write({"x": torch.ones(1)}, folder / "other.safetensors")
    assert hidden(folder) == [part], "a living process's file was removed"
    process.kill()
    process.wait()
    assert hidden(folder) == [part]
    file.write({"x": torch.ones(1)}, folder / "other.safetensors")
    assert not hidden(folder)
    assert (folder / "other.safetensors").is_file()


def test_a_part_from_another_machine_is_removed_a_day_after_its_last_byte(tmp_path):
    """Case 52, on a shared drive: locks say nothing there, so age decides; and what is not ours stays whatever its age."""
    foreign, old, other = (tmp_path / name for name in (f".kindred-{'0' * 8}-{'1' * 16}.part", f".kindred-{'0' * 8}-{'2' * 16}.part", ".tmpAbCdEf"))
    for path in (foreign, old, other):
        path.write_bytes(b"x" * 100)
    for path in (old, other):
        os.utime(path, (time.time() - 25 * 3600,) * 2)
    pack("formats.leftovers").clear(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([foreign, other])


def test_a_lock_ends_with_its_process_and_keeps_others_out_before(tmp_path):
    locks = pack("formats.locks").Lock
    mine = locks.take(tmp_path / "lock")
    assert mine.supported and mine.is_there() and locks.take(tmp_path / "lock") is None
    mine.release()
    assert not list(tmp_path.iterdir())
    again = locks.take(tmp_path / "lock")
    (tmp_path / "lock").unlink()  # somebody deletes the folder
    assert not again.is_there()
    second = locks.take(tmp_path / "lock")
    again.release()
    assert second.is_there(), "released what is another's"
    second.release()
