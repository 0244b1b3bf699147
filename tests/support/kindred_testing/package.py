"""The registry's package, as `comfy node pack` makes it: the files that git tracks, without those that `.comfyignore` names."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from .host import ROOT


def files() -> list[Path]:
    """The package's files, relative to the checkout. git reads the patterns itself, by the same rules as the tool."""

    def listed(*options: str) -> set[str]:
        return set(subprocess.run(["git", "-C", ROOT, "ls-files", "-z", *options], capture_output=True, text=True, check=True).stdout.split("\0")) - {""}

    left_out = listed("--cached", "--ignored", f"--exclude-from={ROOT / '.comfyignore'}")
    return sorted(Path(name) for name in listed() - left_out)


def unpack(place: Path) -> Path:
    """The package at `place`, as installing it leaves it."""
    for name in files():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, place / name)
    return place
