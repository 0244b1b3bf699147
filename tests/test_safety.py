"""What a graph, a file or a name from somewhere else cannot do: run code, reach the network, install anything, leave its folders."""

import ast
import json
import os
import re

import pytest
import torch
from kindred_testing import ROOT, pack, package
from kindred_testing.server import PromptError, TestServer
from kindred_testing.sources import imported

# Modules that run, fetch or unpickle, and calls that do. `importlib` alone is allowed: with names that stand in the code.
MODULES = {
    "pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "subprocess", "multiprocessing", "pty", "code", "runpy", "ctypes",
    "socket", "ssl", "urllib", "http", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "websocket", "huggingface_hub", "pip", "ensurepip", "git",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = re.compile(
    r"os\.(system|popen|exec\w*|spawn\w*|posix_spawn\w*|fork\w*|startfile)|torch\.hub\..*|torch\.utils\.cpp_extension\..*|numpy\.load|np\.load|yaml\.load"
    r"|(PIL\.)?Image\.open|tomllib\.load"  # of all that Pillow can open, and of any size: formats/ has a reader for each kind of file
)
SCRIPTS = re.compile(r"\beval\s*\(|new\s+Function\b|\bimport\s*\(\s*['\"]?https?:|https?://(?!www\.w3\.org/)|document\.write|XMLHttpRequest|new\s+WebSocket")


def forbidden(source: str) -> list[str]:
    """What in a Python file runs foreign code, starts a process, opens a connection, or loads a file or model without the guard against these."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "aiohttp" and [alias.name for alias in node.names] == ["web"]:
            continue  # answers of the host's own server; the client's side is another name
        found += [f"import {name}" for name in imported(node) if name.split(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        call, given = ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if call in CALLS or METHODS.fullmatch(call):
            found.append(call)
        if call.endswith("torch.load") and given.get("weights_only") != "True":
            found.append("torch.load without weights_only")
        if call.endswith(".from_pretrained") and given.get("local_files_only") != "True":
            found.append("from_pretrained without local_files_only")
        if "trust_remote_code" in given:
            found.append("trust_remote_code")
    return found


@pytest.fixture(scope="module")
def shipped():
    if not (ROOT / ".git").exists():
        pytest.skip("this copy is no git checkout, from which the package is made")
    return [ROOT / name for name in package.files()]


def test_nothing_shipped_runs_code_or_reaches_out(shipped):
    sources = [path for path in shipped if path.suffix == ".py"]
    assert len(sources) > 50
    assert not {str(path): found for path in sources if (found := forbidden(path.read_text("utf-8")))}
    scripts = [path for path in shipped if path.suffix == ".js"]
    assert not {str(path): found for path in scripts if (found := SCRIPTS.findall(path.read_text("utf-8")))}


@pytest.mark.parametrize(
    "source",
    ["eval(x)", "exec('1')", "import pickle", "from urllib.request import urlopen", "import os\nos.system('ls')", "import subprocess", "from aiohttp import ClientSession", "torch.load(path)",
     "torch.load(path, weights_only=False)", "torch.hub.load('a/b', 'c')", "AutoModel.from_pretrained(name)", "x.from_pretrained(a, local_files_only=True, trust_remote_code=True)",
     "__import__('os')", "Image.open(path)", "np.load(path, allow_pickle=True)"],
)  # fmt: skip
def test_the_check_sees_it(source):
    assert forbidden(source)


# -- names from the graph ------------------------------------------------------------------------------------------------

CHECKPOINT = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": TestServer.CHECKPOINT}}
ESCAPES = ["../evil", "../../evil", "/tmp/evil", "C:\\evil", "C:evil", "\\\\server\\share", "a/../../evil", "evil\0.png", "..", "~/evil/x", "sub/evil"]
# The word by which the refusal is ours (or, for lists, the server's own), and not an accident further on.
REFUSED = r"contains|is empty|begins with a dot|is not inside|not in list|There is no|is not the name|hides the file|mismatch"


def photos(server) -> str:
    from PIL import Image

    folder = server.base / "input" / "safe"
    folder.mkdir(exist_ok=True)
    if not (folder / "a.png").exists():
        Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    return "safe"


def training(server, **settings) -> dict:
    given = {
        "method": "token",
        "spl_weight": 0.0,
        "prior_weight": 0.0,
        "steps": 1,
        "batch_size": 1,
        "learning_rate": 0.0,
        "resolution": 64,
        "seed": 5,
        **settings,
    }
    return {
        "1": CHECKPOINT,
        "2": {"class_type": "KindredPhotos", "inputs": {"folder": photos(server)}},
        "3": {"class_type": "KindredConcept", "inputs": {"images": ["2", 0], "token": "<v1>", "class_word": "dog"}},
        "4": {"class_type": "KindredTrain", "inputs": {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "concepts.concept_0": ["3", 0], **given}},
        "5": {"class_type": "KindredSave", "inputs": {"lora": ["4", 2], "tokens": ["4", 3], "name": "safe", "overwrite": True}},
    }


def by_link(prompt: dict, node: str, name: str) -> dict:
    """The value through a link, where the server checks no list."""
    value = prompt[node]["inputs"][name]
    prompt["linked"] = {"class_type": "PrimitiveString", "inputs": {"value": value}}
    prompt[node]["inputs"][name] = ["linked", 0]
    return prompt


def graphs(server, name: str) -> dict[str, dict]:
    """Each place where a graph says a name -> a prompt that says `name` there."""
    load = {"1": CHECKPOINT, "2": {"class_type": "KindredLoad", "inputs": {"model": ["1", 0], "clip": ["1", 1], "name": name, "strength": 1.0}}}
    load["3"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["2", 1], "text": "a"}}
    load["4"] = {"class_type": "PreviewAny", "inputs": {"source": ["3", 0]}}
    folder = {"1": {"class_type": "KindredPhotos", "inputs": {"folder": name}}, "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    turned = {
        "1": CHECKPOINT,
        "2": {
            "class_type": "KindredTokenSLERP",
            "inputs": {"clip": ["1", 1], "token": f"embedding:{name}", "class_word": "dog", "alpha": 0.2, "beta": 0.5, "norm": "midpoint"},
        },
    }
    turned["3"] = {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}}
    measured = {"1": CHECKPOINT, "2": {"class_type": "KindredDrift", "inputs": {"clip": ["1", 1], "token": f"embedding:{name}", "class_word": "dog"}}}
    measured["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["2", 1]}}
    saved = training(server)
    saved["5"]["inputs"]["name"] = name
    return {
        "Load Photos": folder, "Load Concept": load, "Load Concept, published": by_name(load, "2", "name", f"{name}/"), "Save Concept": saved,
        "run_name": training(server, run_name=name), "continue": training(server, run_name=name, resume="continue"), "Token SLERP": turned, "Semantic Drift": measured,
    }  # fmt: skip


def by_name(prompt: dict, node: str, name: str, value: str) -> dict:
    changed = {key: {**entry, "inputs": dict(entry["inputs"])} for key, entry in prompt.items()}
    changed[node]["inputs"][name] = value
    return changed


@pytest.fixture(scope="module")
def tree(server):
    """Real files where escaping names would lead, so that what is refused would otherwise be found."""
    dog = pack("formats.token").LearnedToken("<v1>", "dog", {"clip_l": torch.ones(1, 768)})
    for place in (
        server.base / "models" / "evil",
        server.base / "evil",
        server.base / "models" / "loras" / "evil",
        server.base / "models" / "loras" / "kindred" / "sub" / "evil",
    ):
        pack("formats.safefile").write({"x": torch.ones(1)}, place.with_suffix(".safetensors"), {"kindred.tokens": "[]"})
    pack("formats.token_file").save(dog, server.base / "models" / "evil_token.safetensors", overwrite=True)
    photos(server)
    (server.base / "evil").mkdir(exist_ok=True)
    (server.base / "evil" / "a.png").write_bytes((server.base / "input" / "safe" / "a.png").read_bytes())
    return {path: path.stat().st_mtime_ns for path in everything(server)}


def everything(server) -> list:
    """All files below the server's folder but in the places where results belong."""
    own = ("output", "temp", "user", "custom_nodes")
    return sorted(
        path
        for path in server.base.rglob("*")
        if path.is_file() and path.relative_to(server.base).parts[0] not in own and "comfyui.db" not in path.name and path.name != "server.log"
    )


@pytest.mark.parametrize("name", ESCAPES, ids=repr)
def test_names_cannot_leave_their_folders(server, tree, name):
    for place, prompt in graphs(server, name).items():
        for how in (prompt, linked(prompt, name)):
            with pytest.raises(PromptError, match=REFUSED) as error:
                server.run(how)
            assert "Traceback" not in str(error.value), place
    assert {path: path.stat().st_mtime_ns for path in everything(server)} == tree
    for find in ("find_concept", "photo_folder"):  # behind lists, which the server itself holds to their options
        with pytest.raises(ValueError, match=REFUSED):
            getattr(pack("host.paths"), find)(name)


def linked(prompt: dict, name: str) -> dict:
    """The same prompt with the name through a link."""
    changed = {key: {**entry, "inputs": dict(entry["inputs"])} for key, entry in prompt.items()}
    node, key = next(
        (node, key)
        for node, entry in prompt.items()
        for key, value in entry["inputs"].items()
        if isinstance(value, str) and value.removeprefix("embedding:").removesuffix("/") == name
    )
    return by_link(changed, node, key)


@pytest.mark.skipif(os.name == "nt", reason="links need a right there that tests do not have")
def test_links_are_not_followed_out(server, tmp_path):
    """A link inside the folders that leads out of them: not read as photos or token, not written through, not continued from."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.png").write_bytes((server.base / "input" / photos(server) / "a.png").read_bytes())
    secret = outside / "secret.safetensors"
    secret.write_bytes(b"secret")
    places = {
        server.base / "input" / "out": outside, server.base / "models" / "loras" / "kindred" / "held.safetensors": secret,
        server.base / "models" / "embeddings" / "held.safetensors": secret, server.base / "output" / "kindred" / "runs" / "held": outside,
    }  # fmt: skip
    for link, target in places.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    try:
        for prompt, words in (
            (graphs(server, "out")["Load Photos"], "not inside|not in list"),
            (graphs(server, "held")["Token SLERP"], "link that leaves"),
            (graphs(server, "held")["continue"], "no interrupted training"),
        ):
            with pytest.raises(PromptError, match=words):
                server.run(prompt)
        saved = server.run(by_name(training(server, save_every=1, run_name="held"), "5", "name", "held"))
        assert "Saved as held_2" in json.dumps(saved.ui), "both links hold the name `held`, so another one is taken"
        assert secret.read_bytes() == b"secret" and sorted(path.name for path in outside.iterdir()) == ["a.png", "secret.safetensors"]
    finally:
        for link in places:
            if link.is_symlink():
                link.unlink()
