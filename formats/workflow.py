"""The workflow that the page sends with a prompt. Each Train Concept keeps its last run in its properties. The data is untrusted."""

from __future__ import annotations

RUN = "kindred_run"  # the property; web/panel/panel.js writes it
MAX_RUNS = 1_000_000  # of one workflow; a higher number is invalid
_MAX_NODES = 10_000  # read in each graph


def workflow_id(extra_pnginfo) -> str | None:
    """The workflow's id, or None if the front end sent none."""
    identifier = _get(_get(extra_pnginfo, "workflow"), "id")
    return identifier if isinstance(identifier, str) and identifier else None


def runs_before(extra_pnginfo) -> int:
    """The number of earlier runs: the highest number among the runs saved in the workflow, 0 if there are none."""
    workflow = _get(extra_pnginfo, "workflow")
    subgraphs = _list(_get(_get(workflow, "definitions"), "subgraphs"))
    nodes = [node for graph in (workflow, *subgraphs[:_MAX_NODES]) for node in _list(_get(graph, "nodes"))[:_MAX_NODES]]
    numbers = (_get(_get(_get(node, "properties"), RUN), "order") for node in nodes)
    return max((number for number in numbers if type(number) is int and 0 <= number < MAX_RUNS), default=0)


def _get(value, key: str):
    return value.get(key) if isinstance(value, dict) else None


def _list(value) -> list:
    return value if isinstance(value, list) else []
