"""The host's own unit tests: the pack must not change one result. What passes with the pack needs no second run; the rest runs without it, too."""

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from kindred_testing import COMFYUI, ROOT

# Every run imports the host's node registry first; the first run loads the pack into it, with every module that it has.
PLUGIN = """
import asyncio, importlib, pathlib, pkgutil, sys

def pytest_configure(config):
    arguments, sys.argv = sys.argv, ["main.py", "--cpu"]
    import comfy.options
    comfy.options.enable_args_parsing()
    import comfy.cli_args
    sys.argv = arguments
    comfy.options.enable_args_parsing(False)
    import utils.extra_config  # as main.py does, before `nodes` puts another `utils` on the path
    import nodes
    import server
    place = pathlib.Path("custom_nodes/ComfyUI-Kindred").absolute()
    if place.exists():
        loop = asyncio.new_event_loop()
        server.PromptServer(loop)
        assert loop.run_until_complete(nodes.load_custom_node(str(place)))
        name = str(place).replace(".", "_x_")
        for room in ("training", "embedding", "guidance", "evaluation", "host", "formats"):
            for module in pkgutil.walk_packages([str(place / room)], f"{name}.{room}."):
                if "standalone" not in module.name:
                    importlib.import_module(module.name)
        del server.PromptServer.instance
"""


@pytest.mark.slow
def test_the_hosts_unit_tests_do_not_notice_the_pack(tmp_path):
    if not (COMFYUI / "tests-unit").is_dir():
        pytest.skip("this ComfyUI comes without its unit tests")
    place = tmp_path / "ComfyUI"
    own = ("models", "custom_nodes", "output", "input", "user", ".git")  # a user's may be large, and are not what is tested
    shutil.copytree(COMFYUI, place, ignore=lambda folder, names: own if folder == str(COMFYUI) else ["__pycache__"])
    for name in own[:-1]:
        (place / name).mkdir()
    (place / "kindred_host_suite.py").write_text(PLUGIN)

    def outcomes(name: str, *files: str) -> dict[str, dict[str, str]]:
        """File -> test -> outcome."""
        report = tmp_path / f"{name}.xml"
        run = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                *files,
                "-q",
                "-p",
                "kindred_host_suite",
                "-p",
                "no:cacheprovider",
                "-o",
                "junit_family=xunit1",
                f"--junitxml={report}",
            ],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(place)},
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert report.is_file(), run.stdout[-3000:] + run.stderr[-2000:]
        found: dict[str, dict[str, str]] = {}
        for case in ElementTree.parse(report).iter("testcase"):
            outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
            found.setdefault(case.get("file") or "tests-unit", {})[f"{case.get('classname')}::{case.get('name')}"] = outcome
        return found

    pack = place / "custom_nodes" / "ComfyUI-Kindred"
    pack.symlink_to(ROOT)
    with_pack = outcomes("with", "tests-unit")
    assert sum(outcome == "passed" for tests in with_pack.values() for outcome in tests.values()) > 300, with_pack
    doubtful = {file: tests for file, tests in with_pack.items() if set(tests.values()) != {"passed"}}
    if doubtful:
        pack.unlink()
        assert outcomes("without", *sorted(doubtful)) == doubtful
