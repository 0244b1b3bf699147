"""What a host may be like when the pack is loaded: without a server, with folders that nobody may list, with the pack on a read-only disk."""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from kindred_testing import COMFYUI, ROOT, host, pack, package

NOBODY = 65534


@contextmanager
def without_rights():
    """Permissions do not bind root: in here this process has another user's."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def base():
    """A folder that every user may enter, unlike pytest's."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)


@pytest.fixture
def input_folder(base):
    import folder_paths

    before = folder_paths.get_input_directory()
    (base / "input").mkdir()
    folder_paths.set_input_directory(str(base / "input"))
    yield base / "input"
    folder_paths.set_input_directory(before)


def closed(folder: Path, mode: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "a.png").touch()
    folder.chmod(mode)
    return folder


posix = pytest.mark.skipif(os.name == "nt", reason="permissions and links are others there")


@posix
def test_folders_that_cannot_be_listed_are_left_out(input_folder):
    """Case 53. No node's schema fails for a folder that is closed, loops, leads away, or is not there."""
    for name in ("rex", "rex/more/deep", "empty/full"):
        closed(input_folder / name, 0o755)
    made = [closed(input_folder / "lost+found", 0o000), closed(input_folder / "rex" / "listed only", 0o444), closed(input_folder / "entered only", 0o311)]
    (input_folder / "rex" / "loop").symlink_to(input_folder)
    (input_folder / "out").symlink_to(ROOT / "web")
    (input_folder / "itself").symlink_to(input_folder / "itself")
    (input_folder / os.fsdecode(b"no-\xff-text")).mkdir()
    (input_folder / os.fsdecode(b"no-\xff-text") / "a.png").touch()
    paths = pack("host.paths")
    with without_rights():
        found = paths.photo_folders()
        for node in pack("nodes").all_nodes():
            assert node.GET_SCHEMA().node_id == node.__name__
    for folder in made:
        folder.chmod(0o755)
    assert set(found) - {"rex/listed only"} == {"rex", "rex/more/deep", "empty/full"}
    for name in found:
        assert paths.photo_folder(name).is_dir(), "what is listed can be chosen"
    for name in ("x" * 300, "\ud800", "a\0b", "../rex", "out", "itself"):
        with pytest.raises(ValueError, match=r"is not inside|There is no folder"):
            paths.photo_folder(name)
    (input_folder / "new").mkdir()
    assert "new" not in paths.photo_folders()
    (input_folder / "new" / "a.png").touch()
    assert "new" in paths.photo_folders(), "a change of a moment ago is seen"


def test_many_files_do_not_slow_the_lists_down(input_folder):
    """Case 53. 100,000 files; the page asks for the lists at every start and at every R."""
    for name in ("many", "few"):
        (input_folder / name).mkdir()
        for index in range(100_000 if name == "many" else 1):
            os.close(os.open(input_folder / name / f"{index}.png", os.O_CREAT))
    for folder in (input_folder / "many", input_folder / "few", input_folder):
        os.utime(folder, (1e9, 1e9))
    paths = pack("host.paths")

    def seconds() -> float:
        begun = time.process_time()
        assert paths.photo_folders() == ["few", "many"]
        return time.process_time() - begun

    assert seconds() < 0.5  # of the processor; the disk decides the rest
    assert seconds() < 0.01
    (input_folder / "many" / "sub").mkdir()
    (input_folder / "many" / "sub" / "a.png").touch()
    assert paths.photo_folders() == ["few", "many", "many/sub"]


# Without `server.PromptServer(...)`, as programs that embed ComfyUI start it.
EMBEDDED = """
import asyncio, importlib, os, pkgutil, sys
from pathlib import Path
comfyui, pack, copy, base, nobody = sys.argv[1:]
sys.path.append(os.path.join(pack, "host", "standalone"))
import kindred_standalone
kindred_standalone.start_host(Path(comfyui), Path(base), True, ("--database-url", "sqlite:///:memory:"))
import nodes
assert asyncio.run(nodes.load_custom_node(pack))
name = pack.replace(".", "_x_")
for room in ("training", "embedding", "guidance", "evaluation", "host", "formats"):
    for module in pkgutil.iter_modules([os.path.join(pack, room)]):
        importlib.import_module(f"{name}.{room}.{module.name}")
load = lambda part: importlib.import_module(f"{name}.{part}")
with load("host.progress").TrainingProgress("1", 2, ["<v1>"]) as progress:
    progress.warn("something")
load("host.drawing").DrawingProgress("1", 1, 1, 1).batch(1)
load("host.prompt").show_on_node("1", "something")
import server
assert not hasattr(server.PromptServer, "instance")
for node in [node for node in nodes.NODE_CLASS_MAPPINGS if node.startswith("Kindred")]:
    del nodes.NODE_CLASS_MAPPINGS[node]
if os.geteuid() == 0:
    os.seteuid(int(nobody))
assert not os.access(copy, os.W_OK, effective_ids=os.access in os.supports_effective_ids)
assert asyncio.run(nodes.load_custom_node(copy))
print("nodes:", sum(node.startswith("Kindred") for node in nodes.NODE_CLASS_MAPPINGS))
"""


@posix
@pytest.mark.hosts
def test_it_loads_where_there_is_no_server_and_from_a_disk_that_is_read_only(base):
    """Cases 53 and 54: also with a closed folder in `input`, read as a user for whom permissions bind."""
    if not (ROOT / ".git").exists():
        pytest.skip("this copy is no git checkout, from which the package is made")
    host.make_base_directory(base / "base")
    closed(base / "base" / "input" / "lost+found", 0o000)
    copy = package.unpack(base / "disk" / host.PACK_NAME)
    for path in (*copy.rglob("*"), copy):
        path.chmod(0o555 if path.is_dir() else 0o444)
    command = [sys.executable, "-c", EMBEDDED, COMFYUI, ROOT, copy, base / "base", NOBODY]
    said = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o755)
    (base / "base" / "input" / "lost+found").chmod(0o755)
    assert f"nodes: {len(pack('nodes').all_nodes())}" in said.stdout, said.stdout[-3000:] + said.stderr[-3000:]
