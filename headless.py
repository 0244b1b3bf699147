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
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.append(str(ROOT / "host" / "standalone"))

import kindred_standalone  # noqa: E402


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options; ends the process with a sentence, or with the help. Needs nothing but Python."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False)
    parser.add_argument("files", nargs="*", type=Path, help="recipes: TOML files, see below")
    parser.add_argument("--resume", action="store_true", help="continue each file's run from its newest state")
    parser.add_argument(
        "--comfyui",
        type=Path,
        default=os.environ.get("COMFYUI_PATH") or (ROOT.parents[1] if ROOT.parent.name == "custom_nodes" else None),
        help="ComfyUI's folder",
    )
    parser.add_argument("--base-directory", type=Path, help="folder of models and output (default: ComfyUI's folder)")
    parser.add_argument("--cpu", action="store_true", help="do not use the GPU")
    parser.add_argument("-h", "--help", action="store_true", help="this text")
    options = parser.parse_args(arguments)
    if options.help or not options.files:
        parser.print_help()
        print(f"\n{kindred_standalone.load('training.recipe_help').text()}")
        raise SystemExit(0 if options.help else 2)
    if not any(path.expanduser().exists() for path in options.files):  # one of several fails alone
        parser.error(f"there is no such file. Name a recipe, a TOML file; --help shows one. ({', '.join(map(str, options.files))})")
    return options


def main() -> int:
    options = parse(sys.argv[1:])
    if options.comfyui is None or not (Path(options.comfyui) / "comfy").is_dir():
        print("kindred: no ComfyUI found; set its folder with --comfyui or COMFYUI_PATH.", file=sys.stderr)
        return 2
    files = [path.resolve() for path in options.files]  # before start_host changes the current folder
    kindred_standalone.start_host(Path(options.comfyui), options.base_directory, options.cpu)
    return kindred_standalone.load("training.headless").run(files, options.resume)


if __name__ == "__main__":
    sys.exit(main())
