"""The one writer of all our files: bits, bytes, memory, a full disk, damage."""

import resource
import stat
import subprocess
import sys

import pytest
import torch
from kindred_testing import ROOT, pack


def test_every_type_of_a_training_state_comes_back_bit_for_bit(tmp_path):
    file = pack("formats.safefile")
    shared = torch.arange(12, dtype=torch.float32)
    state = {
        "bf16": torch.randn(3, 5).bfloat16(),
        "fp16": torch.tensor([6.1e-5, -65504.0, 5.96e-8]).half(),
        "int64": torch.tensor([2**62, -(2**62)]),
        "step": torch.tensor(500),
        "rng": torch.get_rng_state(),
        "flag": torch.tensor([True, False]),
        "fp64": torch.randn(2, dtype=torch.float64),
        "empty": torch.zeros(0),
        "turned": torch.randn(4, 6).T,
        "shared": shared,
        "shared again": shared,
        "a part of it": shared[3:7],
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    metadata = {"кот": 'пять "\\/\n\t\x01\x7f', "emoji": "\U0001f600", **{f"k{index}": "x" for index in range(20)}}
    path = file.write(state, tmp_path / "state.safetensors", metadata)
    back, about = file.read(path)
    assert about == metadata and back.keys() == state.keys()
    for name, value in state.items():
        assert back[name].dtype == value.dtype and back[name].shape == value.shape
        assert back[name].contiguous().view(-1).view(torch.uint8).tolist() == value.detach().contiguous().view(-1).view(torch.uint8).tolist(), name
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444
    assert path.read_bytes() == file.write(dict(reversed(state.items())), tmp_path / "again.safetensors", dict(reversed(metadata.items()))).read_bytes()


MEMORY = """
import pathlib, resource, sys, torch
sys.path.append(sys.argv[1])
import kindred_standalone
safefile = kindred_standalone.load("formats.safefile")
safefile.write({"warm": torch.zeros(8)}, pathlib.Path(sys.argv[2]))
state = {f"layer{i}": torch.ones(2**22) for i in range(16)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
safefile.write(state, pathlib.Path(sys.argv[2]), {"step": "1"})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_a_training_state_is_written_without_a_copy_in_memory(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(ROOT / "host" / "standalone"), str(tmp_path / "s.safetensors")], capture_output=True, text=True, check=True
    )
    assert (tmp_path / "s.safetensors").stat().st_size > 256 * 2**20
    assert int(run.stdout) < 64 * 1024, f"writing 256 MiB took {int(run.stdout) / 1024:.0f} MiB more"


def test_a_disk_that_takes_no_more_leaves_the_old_file(tmp_path):
    """A real limit of the system on a file's size, which stops the write in its middle."""
    file = pack("formats.safefile")
    path = file.write({"x": torch.zeros(8)}, tmp_path / "a.safetensors")
    old, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(OSError, match="A file cannot be written"):
            file.write({"x": torch.zeros(2**20)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_is_told_at_once(tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError):
        pack("formats.safefile").write({"x": torch.zeros(8)}, tmp_path / "taken" / "a.safetensors")


DAMAGE = {
    "empty": lambda good, header, rest: b"",
    "three bytes": lambda good, header, rest: good[:3],
    "header cut off": lambda good, header, rest: good[:40],
    "data cut off": lambda good, header, rest: good[:-4],
    "something behind": lambda good, header, rest: good + b"more",
    "header too long": lambda good, header, rest: (2**60).to_bytes(8, "little") + good[8:],
    "no JSON": lambda good, header, rest: good[:8] + b"x" * len(header) + rest,
    "a hole": lambda good, header, rest: good[:8] + header.replace(b"[0,32]", b"[4,32]") + rest,
    "an overlap": lambda good, header, rest: good[:8] + header.replace(b"[32,64]", b"[28,60]") + rest,
    "a type nobody knows": lambda good, header, rest: good[:8] + header.replace(b'"F32"', b'"Q99"', 1) + rest,
    "a shape too large": lambda good, header, rest: good[:8] + header.replace(b"[8]", b"[9]", 1) + rest,
    "a pickle": lambda good, header, rest: b"\x80\x02}q\x00." + good,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_error_with_the_path(tmp_path, kind):
    file = pack("formats.safefile")
    path = file.write({"a": torch.ones(8), "b": torch.ones(8)}, tmp_path / "bad.safetensors")
    good = path.read_bytes()
    length = int.from_bytes(good[:8], "little")
    damaged = DAMAGE[kind](good, good[8 : 8 + length], good[8 + length :])
    assert damaged != good
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        file.read(path)
