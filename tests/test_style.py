"""What the house asks of its files, held by tools: lint, format, size, and arrows that only go down."""

import ast
import subprocess
import sys

import pytest
from kindred_testing import ROOT
from kindred_testing.sources import imported

ROOMS = ("nodes", "training", "embedding", "guidance", "evaluation", "host", "formats")
BELOW = {  # what a room may import of the pack, besides itself
    "nodes": {"training", "embedding", "guidance", "evaluation", "host", "formats"},
    "training": {"guidance", "evaluation", "host", "formats"}, "embedding": {"host", "formats"}, "guidance": {"host", "formats"}, "evaluation": {"embedding", "host", "formats"},
    "host": {"formats"}, "formats": set(),
}  # fmt: skip
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def test_ruff_finds_nothing():
    run = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", str(ROOT)], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stdout


def test_one_file_loads_the_pack_by_path():
    """A second loader knows fewer of the pack's rooms than the first, and breaks when one of them needs another."""
    own = [path for room in ("dev", "tests", *ROOMS) for path in (ROOT / room).rglob("*.py")] + [ROOT / "headless.py"]
    assert [path.name for path in own if ".__path__ " + "=" in path.read_text("utf-8")] == ["kindred_standalone.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_go_down_and_the_host_has_one_door(path):
    room = path.relative_to(ROOT).parts[0]
    depth = len(path.relative_to(ROOT).parts)
    assert len(path.read_text("utf-8").splitlines()) <= 330, "a file that a person cannot read in a sitting"
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            assert set(names) <= BELOW[room] | {room}, f"line {node.lineno} imports {names}"
        for name in imported(node):
            top = name.split(".")[0]
            inside = top in ("comfy", "comfy_extras", "comfy_execution", "folder_paths", "server", "execution", "nodes", "latent_preview", "node_helpers")
            assert room == "host" or not inside, f"line {node.lineno} imports {name}: ComfyUI's internals are reached through host/"
