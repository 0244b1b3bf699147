"""The real ComfyUI in the test process: started once, on the CPU, with the pack loaded by the host's own loader."""

from __future__ import annotations

import asyncio
import importlib
import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
COMFYUI = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".kindred" / "host" / "0.30.0").resolve()
BASE = Path(os.environ.get("KINDRED_TEST_BASE") or tempfile.gettempdir()) / f"kindred-tests-{os.getpid()}"
PACK_NAME = "ComfyUI-Kindred"


def host_version() -> tuple[int, ...]:
    """Of the ComfyUI that is tested, for what only newer ones have."""
    text = (COMFYUI / "comfyui_version.py").read_text("utf-8")
    return tuple(int(part) for part in re.search(r'"([\d.]+)', text)[1].split("."))


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


def start_host() -> None:
    """Import the host and let it load its own nodes and the pack (a second call does nothing)."""
    global _pack_module
    if _pack_module:
        return
    if not (COMFYUI / "main.py").is_file():
        raise RuntimeError(f"No ComfyUI at {COMFYUI}. Run `python kindred.py test`, or set COMFYUI_PATH.")
    base = make_base_directory(BASE)
    # The host has top-level modules named `nodes` and `tests`: the checkout must not stand before it on the path.
    sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != ROOT]
    sys.path.insert(0, str(COMFYUI))
    os.chdir(COMFYUI)
    device = os.environ.get("KINDRED_TEST_ARGUMENTS", "--cpu").split()  # a bench for a graphics card sets others
    arguments, sys.argv = sys.argv, ["main.py", *device, "--base-directory", str(base), "--database-url", "sqlite:///:memory:"]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = arguments
    importlib.import_module("utils.extra_config")  # as main.py does: older hosts' `nodes` puts another `utils` before it on the path
    nodes = importlib.import_module("nodes")
    server = importlib.import_module("server")
    loop = asyncio.new_event_loop()
    server.PromptServer(loop)
    loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    place = str(base / "custom_nodes" / PACK_NAME)
    if not loop.run_until_complete(nodes.load_custom_node(place)):
        raise RuntimeError("The host could not load the pack; its log above says why.")
    _pack_module = place.replace(".", "_x_")


def pack(place: str = ""):
    """The module of the loaded pack at a dotted place, e.g. `pack("embedding.slerp")`."""
    start_host()
    return importlib.import_module(f"{_pack_module}.{place}" if place else _pack_module)
