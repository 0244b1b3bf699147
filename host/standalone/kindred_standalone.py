"""The pack outside ComfyUI's own process: its modules by path, and ComfyUI's modules in this process.

    import kindred_standalone
    recipe = kindred_standalone.load("training.recipe")       # no host is needed for what imports none
    kindred_standalone.start_host(comfyui, base, cpu=True)    # once; then `import comfy`, `import nodes` are ComfyUI's

This folder may stand on `sys.path`. The pack's root must not: ComfyUI has top-level modules named `nodes` and `tests`, which ours would shadow.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
PACK = "kindred_pack"


def load(name: str = "") -> ModuleType:
    """The pack's module at a dotted path, or a package that only stands for its root: `__init__.py` is ComfyUI's door and is not run.

    After the first call, `from kindred_pack.formats import safefile` works, too.
    """
    if PACK not in sys.modules:
        sys.modules[PACK] = package = ModuleType(PACK)
        package.__path__ = [str(ROOT)]
    return importlib.import_module(f"{PACK}.{name}" if name else PACK)


def start_host(comfyui: Path, base: Path | None = None, cpu: bool = False, arguments: tuple[str, ...] = (), own_nodes: bool = False) -> None:
    """Make ComfyUI's modules importable, with its arguments read before anything of it is imported.

    comfyui    its folder, which becomes the current one. Raises ValueError where it is not there
    base       the folder with its models, input and output; None: its own
    cpu        do not use the graphics card; also where there is none
    arguments  further arguments of its command line
    own_nodes  load its extra nodes too, with a server object that does not listen; packs in custom_nodes are not loaded
    """
    if not ((comfyui / "main.py").is_file() and (comfyui / "comfy").is_dir()):
        raise ValueError(f"There is no ComfyUI at {str(comfyui)!r}. Set COMFYUI_PATH or --comfyui to the folder with its main.py.")
    comfyui, base = comfyui.resolve(), base.resolve() if base else None
    sys.path[:] = [str(comfyui), *(place for place in sys.path if Path(place or ".").resolve() != ROOT)]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.chdir(comfyui)
    import torch

    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:  # one card for each of a launcher's processes
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    cpu = cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    own, sys.argv = sys.argv, ["main.py", *["--cpu"] * cpu, *(["--base-directory", str(base)] if base else []), *arguments]
    try:
        importlib.import_module("comfy.options").enable_args_parsing()
        importlib.import_module("comfy.cli_args")
    finally:
        sys.argv = own
    importlib.import_module("utils.extra_config")  # as ComfyUI's main does: older ones' `nodes` puts another `utils` before it on the path
    if own_nodes:
        import asyncio

        nodes, server = importlib.import_module("nodes"), importlib.import_module("server")
        loop = asyncio.new_event_loop()
        server.PromptServer(loop)
        loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
