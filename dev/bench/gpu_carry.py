"""What `gpu.py` needs on a machine that has PyTorch for its card and no network: ComfyUI, and the packages of it that are missing there.

python dev/bench/gpu_carry.py         write .kindred/gpu/carried.tar.xz (about 20 MB) from the set-up's host and from the package registry
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CARRIED = ROOT / ".kindred" / "gpu" / "carried.tar.xz"
HOST = ROOT / ".kindred" / "host" / "0.30.0"
PYTHON = "3.12"
# Those of ComfyUI's requirements that a machine with PyTorch and transformers may lack, and what these need.
PACKAGES = (
    "torchsde",
    "trampoline",
    "alembic",
    "Mako",
    "simpleeval",
    "SQLAlchemy",
    "greenlet",
    "pydantic==2.14.4",
    "pydantic-core==2.50.5",
    "pydantic-settings",
    "annotated-types",
    "typing-inspection",
    "python-dotenv",
    "blake3",
    "comfy-aimdo==0.4.11",
    "comfy-kitchen==0.2.26",
    "spandrel",
)
PLATFORMS = ("manylinux_2_35_x86_64", "manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "any")
UNUSED = ("tests", "tests-unit", "blueprints", "comfy_api_nodes", ".github", ".ci")
# ComfyUI imports PyAV at start for its video nodes. Its 40 MB would not fit, and nothing here reads or writes a film.
WITHOUT_PYAV = '''"""Lets `import av` succeed without PyAV: any name in it is an empty class. For the GPU benches, which touch no film."""

import importlib.abc
import importlib.machinery
import sys
import types


class _Empty(types.ModuleType):
    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "av" else None

    def create_module(self, spec):
        return _Empty(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(_Finder())
'''


def main() -> None:
    if not (HOST / "main.py").is_file():
        raise SystemExit(f"There is no ComfyUI yet. Run `python kindred.py test` first. It is expected in {HOST}")
    CARRIED.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        site = Path(place) / "site"
        site.mkdir()
        for wheel in download(Path(place) / "wheels"):
            unpack(wheel, site)
        (site / "sitecustomize.py").write_text(WITHOUT_PYAV, "utf-8")
        empty_page(site)
        with tarfile.open(CARRIED, "w:xz", preset=6) as archive:
            archive.add(site, "site")
            archive.add(HOST, "host", filter=lambda member: None if set(Path(member.name).parts[1:2]) & set(UNUSED) else member)
    print(f"{CARRIED.stat().st_size / 2**20:.1f} MB: {CARRIED}")


def download(folder: Path) -> list[Path]:
    tags = [part for platform in PLATFORMS for part in ("--platform", platform)]
    tags += ["--python-version", PYTHON, "--implementation", "cp", "--abi", "cp312", "--abi", "abi3", "--abi", "none"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    subprocess.run([*command, *tags, *PACKAGES], check=True)
    return sorted(folder.glob("*.whl"))


def unpack(wheel: Path, site: Path) -> None:
    """The wheel's files, but for comfy-kitchen's compiled kernels (160 MB): its eager backend computes the same."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if not (wheel.name.startswith("comfy_kitchen") and ".so" in Path(name).name):
                archive.extract(name, site)


def empty_page(site: Path) -> None:
    """A front-end package with an empty page, so that ComfyUI's server starts: the benches talk to its API."""
    (version,) = (
        line.partition("==")[2].strip() for line in (HOST / "requirements.txt").read_text().splitlines() if line.startswith("comfyui-frontend-package==")
    )
    page = site / "comfyui_frontend_package" / "static"
    page.mkdir(parents=True)
    (page.parent / "__init__.py").touch()
    (page / "index.html").write_text("<title>No front end here</title>")
    about = site / f"comfyui_frontend_package-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: comfyui-frontend-package\nVersion: {version}\n")


if __name__ == "__main__":
    main()
