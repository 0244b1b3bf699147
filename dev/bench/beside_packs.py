"""Our pack beside another one in the real server: the same final latent as a brute force, or a refusal in words.

    git clone https://github.com/Kosinkadink/ComfyUI-AnimateDiff-Evolved packs/ComfyUI-AnimateDiff-Evolved
    python dev/bench/beside_packs.py packs/ComfyUI-AnimateDiff-Evolved [more folders] [--case windows] [--write rows.md]

Each folder is a pack as its authors publish it; `beside_packs_cases.py` says by the folder's name what is run. The server starts with both packs on the CPU in
float32, in a folder under the system's temporary one. Needs COMFYUI_PATH (or the host that `kindred.py test` made) and what the packs need, e.g. on PYTHONPATH.
Models are small, with random weights. The brute force is `two_weights.py`: the same run with the weak weights copied over the tuned ones for the negative side.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
for place in (ROOT / "tests" / "support", ROOT / "dev" / "bench", ROOT / "dev" / "demo"):
    sys.path.append(str(place))

import beside_packs_cases  # noqa: E402
from beside_packs_files import Files, image_embeddings  # noqa: E402
from beside_packs_frame import Bench  # noqa: E402


def start(pack: Path | None, files: Files, base: Path):
    """The server in `base` with our pack, the brute force and `pack`."""
    from kindred_testing.host import COMFYUI, make_base_directory
    from kindred_testing.server import demo_server

    if base.exists():
        shutil.rmtree(base)
    make_base_directory(base)
    shutil.rmtree(base / "models")
    (base / "models").symlink_to(files.folder, target_is_directory=True)
    image_embeddings(base / "input")
    nodes = base / "custom_nodes"
    shutil.copy(ROOT / "dev" / "bench" / "two_weights.py", nodes / "two_weights.py")
    if pack:
        shutil.copytree(pack, nodes / pack.name)  # a copy: some packs write into their folder
    # Some packs install what they miss: not here.
    quiet = {"PIP_NO_INDEX": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    quiet["PYTHONPATH"] = os.pathsep.join([*os.environ.get("PYTHONPATH", "").split(os.pathsep), str(base)])  # some import themselves as custom_nodes.NAME
    os.environ.update(quiet)
    return demo_server.ComfyServer(COMFYUI, base, ("--cpu", "--force-fp32"))


def commit_of(pack: Path) -> str:
    stamp = pack / ".commit"
    if stamp.exists():
        return stamp.read_text("utf-8").strip()
    if not (pack / ".git").exists():
        return "?"
    return subprocess.run(["git", "-C", str(pack), "log", "-1", "--format=%h %cs"], capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packs", nargs="+", type=Path)
    parser.add_argument("--case", default="", help="only cases whose name contains this")
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.gettempdir()) / "kindred-beside"
    files = Files(folder / "models")
    for pack in options.packs:
        pack = pack.resolve()
        cases = [case for case in beside_packs_cases.CASES[pack.name] if options.case in getattr(case, "name", "")]
        print(f"## {pack.name} {commit_of(pack)}", flush=True)
        for case in cases:
            case.make(files)
        with start(pack, files, folder / f"base-{os.getpid()}") as server:
            log = server.log.read_text("utf-8", "replace")
            ours = [name for name in server.get("/object_info") if name.startswith("Kindred")]
            print(f"{len(ours)} nodes of ours; in the log: {[line for line in log.splitlines() if 'rror' in line or 'IMPORT FAILED' in line][:5]}", flush=True)
            bench = Bench(server, files)
            for case in cases:
                print(f"  {case.name}", flush=True)
                rows = case.run(bench) if hasattr(case, "run") else bench.run(case)
                if options.write:
                    with options.write.open("a", encoding="utf-8") as file:
                        file.writelines(f"| {pack.name} | {commit_of(pack)} | {case.name} | {what} | {result} |\n" for what, result in rows)


if __name__ == "__main__":
    main()
