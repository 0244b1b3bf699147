"""The server whose pages show what nodes report. A program that embeds ComfyUI has none; its nodes then report to the log alone."""

from __future__ import annotations


def server():
    """The host's PromptServer, or None."""
    try:
        from server import PromptServer
    except ImportError:
        return None
    return getattr(PromptServer, "instance", None)


def client() -> str | None:
    """The page that queued the prompt which runs now; None where there is no page."""
    return getattr(server(), "client_id", None)
