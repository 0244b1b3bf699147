"""One real host for the whole session: in this process, and as a server on a free port when a test asks for it."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from kindred_testing import host, start_host
from kindred_testing.photos import draw_photos


def pytest_configure(config):
    beside_others = hasattr(config, "workerinput")
    if config.getoption("numprocesses", None) and not beside_others:
        return  # this process only hands out tests
    if beside_others:
        os.environ["OMP_NUM_THREADS"] = "1"  # a core each, for the servers that tests start as well
    start_host()
    import torch

    torch.set_num_threads(1 if beside_others else 2)


def pytest_unconfigure(config):
    shutil.rmtree(host.BASE, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Files with the most slow tests first, so that two processes end at about the same time."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The real ComfyUI server with the pack, for the whole session. Its models folder is its own."""
    from kindred_testing.server import TestServer

    with TestServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def dog_photos(tmp_path_factory):
    """Five photos of one dog, in a folder of their own: from the miniature world, or real ones from the folder KINDRED_TEST_PHOTOS."""
    given = os.environ.get("KINDRED_TEST_PHOTOS")
    return sorted(Path(given).glob("*.jpg")) if given else draw_photos("pepper", tmp_path_factory.mktemp("dog"))


@pytest.fixture
def linkable_torch():
    """torch.compile works, also where the path of the environment has a space."""
    from kindred_testing.compiling import linkable

    with linkable():
        yield
