"""A real browser for the tests: Debian's Chromium, driven by Playwright, in front of a real server. It needs no browser of Playwright's own."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from .host import ROOT, host_version

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
SCREENSHOTS = ROOT / ".kindred" / "screenshots"
PROBE = ROOT / "tests" / "browser" / "probe.js"
RENDERERS = {"canvas": False, "vue": True}  # the front end's classic node renderer, and Nodes 2.0
# What the host says by itself, with no pack at all: a new user's files that are not there yet, the look-up of its first workflow's models.
HOSTS_OWN = ("/api/userdata", "user.css", "missingModelDownload", "ComfyApp graph accessed before initialization")
if host_version() < (0, 24):
    HOSTS_OWN += ("[Jobs API] Error fetching jobs",)  # its front end does not know the text outputs (of core's Preview Any, too) that its server lists


def chromium() -> str | None:
    """The browser's program: KINDRED_CHROMIUM, or what is on the path."""
    given = os.environ.get("KINDRED_CHROMIUM")
    if given:
        return given if Path(given).is_file() else None
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def missing() -> str | None:
    """Why there can be no browser tests here, or None."""
    try:
        import playwright  # noqa: F401
    except ImportError:
        return "the package playwright is not installed"
    if chromium() is None:
        return "no Chromium: install it (on Debian: apt-get install chromium), or name its program in KINDRED_CHROMIUM"
    return None


class Page:
    """The front end in one renderer. `errors` holds what the console said; `page` is Playwright's."""

    def __init__(self, browser, server, renderer: str, palette: str = "dark"):
        settings = {
            "Comfy.VueNodes.Enabled": RENDERERS[renderer],
            "Comfy.ColorPalette": palette,
            "Comfy.TutorialCompleted": True,
            "Comfy.Graph.CanvasInfo": False,
            "Comfy.Minimap.Visible": False,
        }
        server.post("/settings", settings)
        self.server, self.renderer = server, renderer
        self.page = browser.new_page(viewport={"width": 1500, "height": 1000})
        self.page.set_default_timeout(180_000)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(f"{error}"))
        self.page.on("console", self._said)
        self.page.goto(server.address, wait_until="domcontentloaded")
        self.ready()

    def _said(self, message) -> None:
        line = f"{message.text} ({message.location.get('url', '')})"
        if message.type == "error" and not any(part in line for part in HOSTS_OWN):
            self.errors.append(line)

    def ready(self) -> None:
        """Wait until the front end stands, after a first load or a reload."""
        self.page.wait_for_function(
            "!!(window.app?.extensionManager && (window.app.isGraphReady ?? window.app.graph) && window.LiteGraph?.registered_node_types.KindredTrain)"
        )
        # The first workflow is open and nothing covers the canvas any more.
        self.page.wait_for_function("!!window.app.extensionManager.workflow?.activeWorkflow && !document.querySelector('.p-blockui-mask')")
        self.page.wait_for_timeout(1500)
        self.page.add_script_tag(path=PROBE)

    def reload(self) -> None:
        self.page.reload()
        self.ready()

    def probe(self, call: str, *given):
        """Call a function of probe.js."""
        return self.page.evaluate(f"given => probe.{call}(...given)", list(given))

    def drop(self, file: Path) -> None:
        """Drop a file onto the canvas, as from the desktop."""
        transfer = self.page.evaluate_handle(
            """([text, name]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([text], name, { type: 'application/json' }));
                return transfer;
            }""",
            [file.read_text("utf-8"), file.name],
        )
        self.page.dispatch_event("#graph-canvas", "drop", {"dataTransfer": transfer})
        self.page.wait_for_timeout(1200)

    def theme(self, palette: str) -> None:
        """Change the colours of the page as its settings dialog does."""
        self.page.evaluate("palette => app.extensionManager.setting.set('Comfy.ColorPalette', palette)", palette)
        self.page.wait_for_timeout(500)

    def screenshot(self, name: str) -> Path:
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{name}.png"
        self.page.screenshot(path=path)
        return path


@contextmanager
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        try:
            yield running
        finally:
            running.close()
