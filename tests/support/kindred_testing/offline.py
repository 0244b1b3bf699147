"""A Python process with the network cut off: whatever it tries to reach but this machine itself is refused, and written down."""

from __future__ import annotations

import ast
from pathlib import Path

# `sitecustomize` of that process: Python's own audit events, which all libraries raise that go through its sockets and processes.
_GUARD = """
import os, sys, traceback

def _guard(event, arguments, log={log!r}):
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        what = arguments[1] if event == "subprocess.Popen" else arguments
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        what = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        what = arguments[:1]
    else:
        return
    host = what[0] if isinstance(what, tuple) and what else None
    if event.startswith("socket") and (not isinstance(what, tuple) or host in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::")):
        return
    frames = "".join(traceback.format_stack(limit=12)[:-1])
    with open(log, "a", encoding="utf-8") as file:
        file.write(repr((event, str(what), frames)) + "\\n")
    if event.startswith("socket"):
        raise ConnectionRefusedError(f"the network is cut off: {{event}} {{what}}")

sys.addaudithook(_guard)
"""


def cut_off(folder: Path) -> tuple[dict[str, str], Path]:
    """(environment variables for a Python process without network, the file in which its attempts are written down)."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "attempts.txt"
    log.touch()
    (folder / "sitecustomize.py").write_text(_GUARD.format(log=str(log)), "utf-8")
    return {"PYTHONPATH": str(folder)}, log


def attempts(log: Path) -> list[tuple[str, str, str]]:
    """(event, address or command, where in the code) of each attempt to reach the network or to start a process."""
    return [ast.literal_eval(line) for line in log.read_text("utf-8").splitlines()]
