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
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.append(str(ROOT / "host" / "standalone"))

import kindred_standalone  # noqa: E402


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
    if options.help or not options.files:
        parser.print_help()
        print(f"\n{kindred_standalone.load('training.recipe').HELP}")
        return 0 if options.help else 2
    if options.comfyui is None or not (Path(options.comfyui) / "comfy").is_dir():
        parser.error("no ComfyUI found: name its folder with --comfyui or COMFYUI_PATH")
    files = [path.resolve() for path in options.files]  # before the host's folder becomes the current one
    kindred_standalone.start_host(Path(options.comfyui), options.base_directory, options.cpu)
    return kindred_standalone.load("training.headless").run(files, options.resume)


if __name__ == "__main__":
    sys.exit(main())
