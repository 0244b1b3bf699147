"""The host's web server and the page that queued the prompt. A program that embeds ComfyUI has neither; nodes then report to the log only."""

from __future__ import annotations


def server():
    """The host's PromptServer, or None if there is none."""
    try:
        from server import PromptServer
    except ImportError:
        return None
    return getattr(PromptServer, "instance", None)


def client() -> str | None:
    """The id of the page that queued the running prompt; None if there is no page."""
    return getattr(server(), "client_id", None)
