"""The shell's door: its messages, and the demo as a real process from the first line to the picture, and to Ctrl-C."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from kindred_testing import COMFYUI, ROOT, script
from kindred_testing.models import sd15_checkpoint
from PIL import Image


@pytest.fixture(scope="module")
def door():
    return script("kindred.py")


@pytest.mark.parametrize(
    "output, words",
    [
        ("OSError: [Errno 28] No space left on device", "disk is full"),
        ("NewConnectionError('...: Failed to establish a new connection')", "cannot be reached"),
        ("ProxyError('Cannot connect to proxy.')", "HTTPS_PROXY"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "unexpected file"),
        ("a\nERROR: something new\n", "pip said: ERROR: something new."),
    ],
)
def test_a_failed_step_is_said_in_a_sentence(door, output, words):
    assert words in door.reason(output)


def test_a_folder_that_is_no_comfyui_is_said(door, tmp_path, capsys):
    assert door.main(["demo", "--comfyui", str(tmp_path)]) == 1
    assert "not a ComfyUI folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["--help"], 0, ["demo ", "serve ", "train ", "test ", "comparison picture"]),
        (["train", "--help"], 0, ["[[concept]]", "learning_rate", '"auto" (0 to 10)', "gradient_checkpointing", "[preview] omega", "[save] every"]),
        (["demo", "--help"], 0, ["--class-word", "--omega"]),
        (["test", "--help"], 0, ["pytest"]),
        (["train", "nothing.toml"], 2, ["there is no such file"]),
        (["train", "--resum2"], 2, ["unrecognized arguments: --resum2"]),
        (["demo", "--photos", "x"], 2, ["--photos needs --class-word"]),
        (["serve", "--prot", "1"], 2, ["unrecognized arguments: --prot"]),
    ],
)
def test_help_and_wrong_arguments_are_answered_before_any_set_up(tmp_path, arguments, code, words):
    """In a new checkout, with a Python that has no package at all: nothing is made, nothing is fetched."""
    for entry in ROOT.iterdir():
        if entry.name not in (".kindred", ".git", "kindred.py"):
            (tmp_path / entry.name).symlink_to(entry)
    shutil.copy(ROOT / "kindred.py", tmp_path)
    run = subprocess.run([sys.executable, "-I", "-S", str(tmp_path / "kindred.py"), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == code, run.stderr
    assert not [word for word in words if word not in run.stdout + run.stderr]
    assert "Traceback" not in run.stderr and not (tmp_path / ".kindred").exists()


def test_an_old_python_is_said(door, monkeypatch, capsys):
    monkeypatch.setattr(door.sys, "version_info", (3, 9, 1))
    assert door.main(["test"]) == 1
    assert "needs Python 3.10 or newer" in capsys.readouterr().err


def test_too_little_room_is_said_before_anything_is_installed(door, monkeypatch, tmp_path):
    monkeypatch.setattr(door, "HOME", tmp_path)
    monkeypatch.setattr(door.shutil, "disk_usage", lambda place: door.shutil._ntuple_diskusage(10**10, 10**10 - 10**9, 10**9))
    with pytest.raises(door.Problem, match=r"needs about 5 GB, but only 1\.0 GB are free"):
        door.install_host(tmp_path / "python", COMFYUI, False, [])
    assert not list(tmp_path.iterdir())


def test_a_linked_set_up_is_not_made_again(tmp_path):
    """Two work trees with one `.kindred`: the second one took it for a moved one, and cleared the environment that the first one used."""
    recipes = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        shutil.copy(ROOT / "kindred.py", tmp_path / name)
        if name == "second":
            (tmp_path / name / ".kindred").symlink_to(tmp_path / "first" / ".kindred", target_is_directory=True)
        code = "import kindred; print(kindred.HOME, kindred.recipe(kindred.ROOT / 'kindred.py', False))"
        recipes.append(subprocess.run([sys.executable, "-c", code], cwd=tmp_path / name, capture_output=True, text=True, check=True).stdout)
    assert recipes[0] == recipes[1] and str(tmp_path.resolve() / "first" / ".kindred") in recipes[0]


def test_an_older_comfyui_gets_a_layer_over_the_environment(door, tmp_path, monkeypatch):
    """What it needs otherwise is installed beside, what is alike is shared, and the second run installs nothing."""
    base = Path(sys.executable)
    if not (base.parent.parent / "kindred.json").is_file() or (door.site_packages(base) / "kindred_layer.pth").is_file():
        pytest.skip("the layer is made over an environment of kindred.py, which this Python's is not, or is such a layer itself")
    monkeypatch.setattr(door, "HOME", tmp_path)
    old = tmp_path / "0.0.0"
    old.mkdir()
    (old / "requirements.txt").write_text("pip\ntorch\n")  # both are there: nothing is fetched
    python = door.make_layer(base, old, tmp_path / "layer")
    code = "import sys, pytest, torch, torchvision; print(sys.prefix, torch.__file__, pytest.__file__, sep='\\n')"
    prefix, *shared = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert Path(prefix) == tmp_path / "layer" and all(Path(file).is_relative_to(base.parent.parent) for file in shared)
    made = (tmp_path / "setup.log").read_bytes()
    assert door.make_layer(base, old, tmp_path / "layer") == python and (tmp_path / "setup.log").read_bytes() == made


def test_no_network_is_one_sentence(tmp_path):
    """The real script with a registry that refuses: exit code 1, the reason in words, no traceback, nothing half-made in use."""
    place = tmp_path / "a checkout with spaces"
    place.mkdir()
    for name in ("kindred.py", "requirements.txt", "dev/demo/requirements.txt", "tests/requirements.txt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PIP_") and key not in ("COMFYUI_PATH", "HTTPS_PROXY", "https_proxy")},
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
    }
    run = subprocess.run([sys.executable, str(place / "kindred.py"), "demo"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 1
    assert "could not fetch ComfyUI" in run.stderr and "Traceback" not in run.stderr, run.stderr
    assert "network" in run.stderr or "registry" in run.stderr, run.stderr


def demo(place, *arguments):
    """The demo's script as `kindred.py demo` starts it, with its own base directory in a checkout of symbolic links."""
    place.mkdir(exist_ok=True)
    for entry in ROOT.iterdir():
        if entry.name not in (".kindred", ".git") and not (place / entry.name).exists():
            (place / entry.name).symlink_to(entry)
    if (place / "dev").is_symlink():  # its files find the checkout by their own place
        (place / "dev").unlink()
        shutil.copytree(ROOT / "dev" / "demo", place / "dev" / "demo", ignore=shutil.ignore_patterns("base", "__pycache__"))
    environment = {**os.environ, "COMFYUI_PATH": str(COMFYUI), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(place / "dev" / "demo" / "run.py"), "demo", "--cpu", *arguments]
    return subprocess.Popen(
        command,
        cwd="/",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A test run in the background inherits an ignored SIGINT, which Ctrl-C at a terminal is not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "with a space"
    yield folder
    for process in processes(str(folder)):  # of a test that failed
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def processes(*words: str) -> list[int]:
    """The processes whose command line has all `words`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found += [int(entry.name)] if all(word in line for word in words) else []
    return found


def servers(place) -> list[int]:
    return processes("main.py", str(place))


@pytest.mark.slow
def test_the_demo_on_a_users_own_files_ends_with_a_picture_and_an_open_page(place, dog_photos):
    arguments = ["--checkpoint", sd15_checkpoint(), "--resolution", "64", "--steps", "3", "--photos", dog_photos[0].parent, "--class-word", "dog"]
    process = demo(place, *map(str, arguments), "--prompt", "a {token} {class} on the moon", "--serve")
    output = ""
    for line in process.stdout:
        output += line
        if "runs at" in line:
            break
    address = output.rpartition("runs at ")[2].split()[0]
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=30) as page:
        assert b"<html" in page.read().lower()
    process.send_signal(signal.SIGINT)
    output += process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "Traceback" not in output, output
    assert "3/3   loss" in output and "left" in output
    paths = {
        line.split()[0]: line.split(maxsplit=1)[1]
        for line in output.splitlines()
        if line.startswith("  ") and line.strip().startswith(("comparison", "LoRA", "token "))
    }
    with Image.open(paths["comparison"]) as sheet:
        assert sheet.width > 900 and sheet.height > 450
    assert all(Path(paths[name]).stat().st_size > 1000 for name in ("LoRA", "token"))
    assert not servers(place)


@pytest.mark.slow
def test_a_second_demo_leaves_everything_of_the_first_one(place, tmp_path):
    """Cases 48 and 59: two runs of one name on a user's single photo, of one step and of two. Each run's files are its own, and it names them."""
    Image.new("RGB", (90, 70), "brown").save(tmp_path / "only.png")
    paths, contents = [], []
    for steps in ("1", "2"):
        arguments = ["--checkpoint", sd15_checkpoint(), "--resolution", "64", "--steps", steps, "--photos", tmp_path, "--class-word", "dog", "--name", "mine"]
        process = demo(place, *map(str, arguments), "--prompt", "a {token} {class} on the moon")
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0 and "Traceback" not in output and f"{steps}/{steps}   loss" in output, output
        assert [path.read_bytes() for path in paths] == contents
        new = [Path(line.split(maxsplit=1)[1]) for line in output.splitlines() if line.strip().startswith(("comparison ", "LoRA  ", "token "))]
        paths += new
        contents = [path.read_bytes() for path in paths]
    assert "the concept is 'mine_2'" in output
    assert [path.stem for path in paths] == ["mine"] * 3 + ["mine_2"] * 3
    assert not list((place / ".kindred/base").glob("server-*.log"))


@pytest.mark.slow
def test_ctrl_c_ends_the_demo_with_nothing_left_behind(place):
    process = demo(place, "--steps", "500")
    for line in process.stdout:
        if "training <v1>" in line:
            break
    time.sleep(3)
    assert servers(place)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "stopped" in output and "Traceback" not in output
    assert not servers(place)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--checkpoint", "/nowhere.safetensors"], "There is no checkpoint"),
        (["--photos", "/nowhere", "--class-word", "dog"], "There is no folder"),
        (["--photos", "/"], "needs --class-word"),
        (["--subject", "nobody"], "There is no drawn subject 'nobody'"),
        (["--prompt", "a dog on the moon"], "Write {token} where it stands"),
    ],
)
def test_the_demo_says_what_is_wrong(place, arguments, words):
    process = demo(place, *arguments)
    output, _ = process.communicate(timeout=120)
    assert process.returncode in (1, 2) and words in output and "Traceback" not in output
