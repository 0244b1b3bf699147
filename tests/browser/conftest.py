"""One Chromium and one page of each renderer for a file of browser tests; none of them may leave a word in the console."""

import pytest
import torch
from kindred_testing.browser import RENDERERS, Page, browser
from safetensors.torch import save_file


@pytest.fixture(scope="module")
def chromium(server):
    server.noise_photos("browser")
    saved = server.base / "models" / "loras" / "kindred" / "in-a-list.safetensors"  # a list without an entry has no value to keep
    saved.parent.mkdir(parents=True, exist_ok=True)
    save_file({"diffusion_model.out.2.diff_b": torch.zeros(4)}, saved)
    with browser() as running:
        yield running
    saved.unlink()


@pytest.fixture(scope="module", params=RENDERERS)
def page(request, chromium, server):
    opened = Page(chromium, server, request.param)
    yield opened
    opened.page.close()


@pytest.fixture(autouse=True)
def quiet_console(request):
    page = request.getfixturevalue("page") if "page" in request.fixturenames else None
    if page:
        page.errors.clear()
    yield
    assert page is None or page.errors == []
