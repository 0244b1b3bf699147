#!/usr/bin/env python3
"""Training without a graph, in a Python that has ComfyUI's requirements:

    python headless.py concept.toml [more.toml ...] [--resume] [--comfyui FOLDER] [--base-directory FOLDER]
    accelerate launch headless.py concept.toml            on several GPUs or machines

`python kindred.py train concept.toml` sets up that Python first. `python headless.py --help` describes the files. Several files are independent
runs: if one fails, the others still run. Ctrl-C stops after the current step and keeps the state; `--resume` continues from there.
"""

from __future__ import annotations

import argparse
import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACK = "kindred_pack"  # a package name of its own, so that the pack's `nodes` and `tests` do not shadow the host's modules


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--resume", action="store_true", help="continue each file's run from its newest state")
    parser.add_argument(
        "--comfyui",
        type=Path,
        default=os.environ.get("COMFYUI_PATH") or (ROOT.parents[1] if ROOT.parent.name == "custom_nodes" else None),
        help="ComfyUI's folder",
    )
    parser.add_argument("--base-directory", type=Path, help="folder of models and output (default: ComfyUI's folder)")
    parser.add_argument("--cpu", action="store_true", help="do not use the GPU")
    parser.add_argument("-h", "--help", action="store_true")
    options = parser.parse_args()
    pack = types.ModuleType(PACK)
    pack.__path__ = [str(ROOT)]
    sys.modules[PACK] = pack
    if options.help or not options.files:
        from kindred_pack.training import recipe

        parser.print_help()
        print(f"\n{recipe.HELP}")
        return 0 if options.help else 2
    if options.comfyui is None or not (Path(options.comfyui) / "comfy").is_dir():
        parser.error("no ComfyUI found; set its folder with --comfyui or COMFYUI_PATH")
    files = [path.resolve() for path in options.files]  # before start_host changes the current folder
    start_host(Path(options.comfyui).resolve(), options.base_directory.resolve() if options.base_directory else None, options.cpu)
    from kindred_pack.training import headless

    return headless.run(files, options.resume)


def start_host(comfyui: Path, base: Path | None, cpu: bool) -> None:
    """Make the host's modules importable, and parse its arguments before any of them is imported."""
    sys.path[:] = [str(comfyui), *(place for place in sys.path if Path(place or ".").resolve() != ROOT)]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.chdir(comfyui)
    import torch

    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:  # one GPU per process of the launcher
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    cpu = cpu or not (torch.cuda.is_available() or torch.backends.mps.is_available())
    arguments, sys.argv = sys.argv, ["main.py", *["--cpu"] * cpu, *(["--base-directory", str(base)] if base else [])]
    try:
        import comfy.options

        comfy.options.enable_args_parsing()
        import comfy.cli_args
        import utils.extra_config  # noqa: F401 (as ComfyUI's main does: older ones' `nodes` puts another `utils` before it on the path)
    finally:
        sys.argv = arguments


if __name__ == "__main__":
    sys.exit(main())
