#!/usr/bin/env python3
"""Training without a graph, in a Python that has what ComfyUI needs:

    python headless.py concept.toml [more.toml ...] [--resume] [--comfyui FOLDER] [--base-directory FOLDER]
    accelerate launch headless.py concept.toml            on several cards or machines

`python kindred.py train concept.toml` makes that Python first. What a file holds: `python headless.py --help`. Several files are so many
independent runs: one that fails does not stop the others. Ctrl-C stops after the step, with the state kept; `--resume` goes on.
"""

from __future__ import annotations

import argparse
import os
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PACK = "kindred_pack"  # not the folder's name: the host has modules named `nodes` and `tests`, and the pack's must not shadow them


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--resume", action="store_true", help="go on from the newest state of each file's run")
    parser.add_argument(
        "--comfyui", type=Path, default=os.environ.get("COMFYUI_PATH") or (ROOT.parents[1] if ROOT.parent.name == "custom_nodes" else None), help="its folder"
    )
    parser.add_argument("--base-directory", type=Path, help="where models and output are (default: ComfyUI's own folder)")
    parser.add_argument("--cpu", action="store_true", help="do not use the graphics card")
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
        parser.error("no ComfyUI found: name its folder with --comfyui or COMFYUI_PATH")
    files = [path.resolve() for path in options.files]  # before the host's folder becomes the current one
    start_host(Path(options.comfyui).resolve(), options.base_directory.resolve() if options.base_directory else None, options.cpu)
    from kindred_pack.training import headless

    return headless.run(files, options.resume)


def start_host(comfyui: Path, base: Path | None, cpu: bool) -> None:
    """Make the host's modules importable, and give the host its arguments before anything of it is imported."""
    sys.path[:] = [str(comfyui), *(place for place in sys.path if Path(place or ".").resolve() != ROOT)]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.chdir(comfyui)
    import torch

    if torch.cuda.is_available() and "LOCAL_RANK" in os.environ:  # one card for each of a launcher's processes
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
