"""The real ComfyUI in the test process: started once, on the CPU, with the pack loaded by the host's own loader."""

from __future__ import annotations

import importlib
import os
import re
import tempfile
from pathlib import Path

from .standalone import kindred_standalone

ROOT = Path(__file__).resolve().parents[3]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".kindred" / "host" / "0.30.0").resolve()
BASE = Path(os.environ.get("KINDRED_TEST_BASE") or tempfile.gettempdir()) / f"kindred-tests-{os.getpid()}"
PACK_NAME = "ComfyUI-Kindred"
MUTATIONS = int(os.environ.get("KINDRED_MUTATIONS", "1000"))  # of each kind of file; dev/bench/fuzz.py and a nightly run take 10,000


def host_version() -> tuple[int, ...]:
    """Of the ComfyUI that is tested, for what only newer ones have."""
    text = (COMFYUI / "comfyui_version.py").read_text("utf-8")
    found = re.search(r'"([\d.]+)', text)
    assert found, text
    return tuple(int(part) for part in found[1].split("."))


def later_inputs() -> set[str]:
    """Inputs of ours that the tested ComfyUI is too old for; pages, languages and workflows tell of them all the same."""
    return set() if host_version() >= (0, 24) else {"curve"}


_pack_module: str | None = None


def make_base_directory(base: Path) -> Path:
    """A base directory of the tests' own for the host, with the pack linked into its custom_nodes."""
    for name in ("custom_nodes", "input", "output", "user", "models/checkpoints", "models/loras", "models/embeddings"):
        (base / name).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / PACK_NAME
    if not link.exists():
        link.symlink_to(ROOT, target_is_directory=True)
    return base


def start_host(card: bool = False) -> None:
    """Import the host and let it load its own nodes and the pack (a second call does nothing). `card`: for benches on a graphics card."""
    global _pack_module
    if _pack_module:
        return
    base = make_base_directory(BASE)
    device = () if card else tuple(os.environ.get("KINDRED_TEST_ARGUMENTS", "--cpu").split())  # tests on a graphics card set others
    kindred_standalone.start_host(COMFYUI, base, arguments=(*device, "--database-url", "sqlite:///:memory:"), own_nodes=True)
    nodes, server = importlib.import_module("nodes"), importlib.import_module("server")
    place = str(base / "custom_nodes" / PACK_NAME)
    if not server.PromptServer.instance.loop.run_until_complete(nodes.load_custom_node(place)):
        raise RuntimeError("The host could not load the pack; its log above says why.")
    _pack_module = place.replace(".", "_x_")


def pack(place: str = ""):
    """The module of the loaded pack at a dotted place, e.g. `pack("embedding.slerp")`."""
    start_host()
    assert _pack_module  # start_host has set it
    return importlib.import_module(f"{_pack_module}.{place}" if place else _pack_module)
