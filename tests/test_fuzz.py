"""A slice of dev/bench/fuzz.py: damaged files of every kind are read, or refused by name, in bounded time and memory."""

import os
import subprocess
import sys

import pytest
from kindred_testing import ROOT


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="the script counts memory by what Unix tells")
def test_damaged_files_are_refused_by_name():
    command = [sys.executable, ROOT / "dev" / "bench" / "fuzz.py", "--count", "150", "--seed", "16", "--together"]
    said = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=500)
    assert said.returncode == 0, said.stdout + said.stderr[-2000:]
    lines = [line for line in said.stdout.splitlines() if " read " in line]
    assert len(lines) == 16 and all(0 < int(line.split()[1]) < 150 for line in lines), said.stdout
