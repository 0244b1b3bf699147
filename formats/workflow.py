"""What the page sends along with a prompt: the workflow, with the last run that each Train Concept keeps in its properties. Anything may stand there."""

from __future__ import annotations

RUN = "kindred_run"  # the property; web/panel/panel.js writes it
MOST = 1_000_000  # runs of one workflow; a higher number was not counted
_NODES = 10_000  # looked at


def workflow_id(extra_pnginfo) -> str | None:
    """The workflow's id, if this is the form that the front end gives it."""
    found = _get(_get(extra_pnginfo, "workflow"), "id")
    return found if isinstance(found, str) and found else None


def runs_before(extra_pnginfo) -> int:
    """How many runs came before, as far as the saved ones in the workflow know: the highest of their numbers, 0 without any."""
    workflow = _get(extra_pnginfo, "workflow")
    subgraphs = _list(_get(_get(workflow, "definitions"), "subgraphs"))
    nodes = [node for graph in (workflow, *subgraphs[:_NODES]) for node in _list(_get(graph, "nodes"))[:_NODES]]
    numbers = (_get(_get(_get(node, "properties"), RUN), "order") for node in nodes)
    return max((number for number in numbers if type(number) is int and 0 <= number < MOST), default=0)


def _get(value, key: str):
    return value.get(key) if isinstance(value, dict) else None


def _list(value) -> list:
    return value if isinstance(value, list) else []
