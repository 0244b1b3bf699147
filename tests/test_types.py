"""basedpyright finds nothing. pyproject.toml says what it reads, and which rules are off."""

import os
import subprocess
import sys

import pytest
from kindred_testing import COMFYUI, ROOT, host_version


@pytest.mark.slow
@pytest.mark.skipif(host_version() < (0, 30), reason="the types are those of the newest ComfyUI")
def test_basedpyright_finds_nothing():
    environment = {**os.environ, "PYTHONPATH": str(COMFYUI)}  # the host's types are in its source
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
