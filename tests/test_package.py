"""What a user installs: the registry's package, unpacked into a fresh host, at work with the network cut off."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kindred_testing import ROOT, host, offline, package
from kindred_testing.server import TestServer
from PIL import Image


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    if not (ROOT / ".git").exists():
        pytest.skip("this copy is no git checkout, from which the package is made")
    return package.unpack(tmp_path_factory.mktemp("fresh") / "custom_nodes" / host.PACK_NAME)


def test_the_package_holds_what_users_need_and_nothing_else(unpacked):
    assert {path.name for path in unpacked.iterdir()} == {
        "__init__.py", "LICENSE", "README.md", "pyproject.toml", "requirements.txt", "headless.py",
        "nodes", "training", "embedding", "guidance", "evaluation", "host", "formats", "web", "workflows", "locales",
    }  # fmt: skip
    sizes = {path: path.stat().st_size for path in unpacked.rglob("*") if path.is_file()}
    assert {path.suffix for path in sizes} <= {".py", ".md", ".json", ".jpg", ".js", ".css", ".toml", ".txt", ""}
    assert sum(sizes.values()) < 6e6, "users download all of it"
    installed = [line for line in (unpacked / "requirements.txt").read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert not installed, "a package that is named here may move what a user has"


@pytest.fixture(scope="module")
def cut_off(unpacked, tmp_path_factory):
    """A server with the unpacked package and without network, and the file of what it tried all the same."""
    environment, log = offline.cut_off(tmp_path_factory.mktemp("guard"))
    probe = "import socket, subprocess; subprocess.run(['true'])\ntry: socket.create_connection(('192.0.2.1', 80), timeout=5)\nexcept ConnectionRefusedError as error: print(error)"
    said = subprocess.run([sys.executable, "-c", probe], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)
    assert "cut off" in said.stdout and [event for event, *_ in offline.attempts(log)] == ["subprocess.Popen", "socket.getaddrinfo"], said.stderr
    log.write_text("")
    server = TestServer(unpacked.parents[1])  # which finds the pack in place
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        server.start()
    try:
        yield server, log
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.hosts
def test_it_trains_and_draws_without_network_and_installs_nothing(cut_off):
    server, log = cut_off
    folder = server.base / "input" / "dog"
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(2)
    for index in range(2):
        Image.fromarray(random.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    checkpoint = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": server.CHECKPOINT}}
    settings = {"method": "kv + token", "spl_weight": 1.0, "prior_weight": 1.0, "steps": 2, "batch_size": 1, "learning_rate": 0.0, "resolution": 64, "seed": 5}
    server.run(
        {
            "1": checkpoint,
            "2": {"class_type": "KindredPhotos", "inputs": {"folder": "dog"}},
            "3": {"class_type": "KindredConcept", "inputs": {"images": ["2", 0], "token": "<v1>", "class_word": "dog"}},
            "4": {"class_type": "KindredTrain", "inputs": {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "concepts.concept_0": ["3", 0], **settings}},
            "5": {"class_type": "KindredSave", "inputs": {"lora": ["4", 2], "tokens": ["4", 3], "name": "rex", "overwrite": True}},
        }
    )
    server.get("/object_info/KindredLoad")
    sampling = {"seed": 3, "steps": 2, "cfg": 5.0, "omega": 0.6, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    drawn = server.run(
        {
            "1": checkpoint,
            "2": {"class_type": "KindredLoad", "inputs": {"model": ["1", 0], "clip": ["1", 1], "name": "rex", "strength": 1.0}},
            "3": {"class_type": "KindredTextEncode", "inputs": {"clip": ["2", 1], "text": "a photo of a <v1> dog", "alpha": 0.2, "beta": 0.5}},
            "4": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
            "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
            "6": {
                "class_type": "KindredKSampler",
                "inputs": {**sampling, "model": ["2", 0], "base_model": ["1", 0], "positive": ["3", 0], "negative": ["4", 0], "latent_image": ["5", 0]},
            },
            "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}},
            "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "offline"}},
            "9": {"class_type": "KindredDrift", "inputs": {"clip": ["2", 1], "token": "<v1>", "class_word": "dog"}},
            "10": {"class_type": "PreviewImage", "inputs": {"images": ["9", 1]}},
        }
    )
    assert drawn.images["8"] and drawn.images["10"]
    tried = offline.attempts(log)
    assert not [attempt for attempt in tried if attempt[0].startswith("socket")], tried
    ours = str(Path("custom_nodes") / host.PACK_NAME)  # the checkout may bear the pack's name, too, and its host lies below it
    assert not [attempt for attempt in tried if ours in attempt[2] or "pip" in attempt[1]], tried


@pytest.mark.slow
def test_the_host_serves_its_templates_help_and_languages(cut_off):
    """Where the front end looks for them: the template browser, the help panel, the language settings."""
    server, _ = cut_off
    names = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
    assert sorted(server.get("/workflow_templates")[host.PACK_NAME]) == names
    for name in names:
        assert server.get(f"/api/workflow_templates/{host.PACK_NAME}/{name}.json")["nodes"]
        assert server.get(f"/api/workflow_templates/{host.PACK_NAME}/{name}.jpg")[:2] == b"\xff\xd8"
    nodes = [name for name, info in server.get("/object_info", timeout=120).items() if info["python_module"].endswith(host.PACK_NAME)]
    assert len(nodes) >= 14
    languages = server.get("/i18n")
    for node in nodes:
        assert server.get(f"/extensions/{host.PACK_NAME}/docs/{node}.md").decode().startswith("# ")
        for language in sorted(path.name for path in Path(ROOT / "locales").iterdir() if path.is_dir()):
            assert languages[language]["nodeDefs"][node]["display_name"], json.dumps(languages[language]["nodeDefs"].get(node))
