"""A workflow file as the front end saves it, turned into the prompt that the server's API takes.

The demo queues the very files that people drag onto the canvas. The front end makes this conversion in the browser; this is the part
of it that workflows without subgraphs need.
"""

from __future__ import annotations

import json
from pathlib import Path

IGNORED = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
MUTED, BYPASSED = 2, 4


def load(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """The prompt in API form. ValueError for a node that the server does not know or that is left out in mid-way."""
    sources = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    left_out = {str(node["id"]) for node in workflow["nodes"] if node["type"] in IGNORED or node.get("mode") in (MUTED, BYPASSED)}
    prompt = {}
    for node in workflow["nodes"]:
        if str(node["id"]) in left_out:
            continue
        if node["type"] not in object_info:
            raise ValueError(f"The server does not know the node {node['type']!r}.")
        inputs = _widgets(node, object_info[node["type"]])
        for slot in node.get("inputs", []):
            if slot.get("link") is not None:
                source, output = sources[slot["link"]]
                if source in left_out:
                    raise ValueError(f"Node {node['id']} ({node['type']}) is connected to node {source}, which is left out.")
                inputs[slot["name"]] = [source, output]
        prompt[str(node["id"])] = {
            "class_type": node["type"],
            "inputs": inputs,
            "_meta": {"title": node.get("title") or object_info[node["type"]]["display_name"]},
        }
    return prompt


def find(prompt: dict, title: str) -> dict:
    """The inputs of the node titled so, to be filled in. KeyError when there is none."""
    for node in prompt.values():
        if node["_meta"]["title"] == title:
            return node["inputs"]
    raise KeyError(f"the workflow has no node titled {title!r}")


def node_id(prompt: dict, title: str) -> str:
    return next(key for key, node in prompt.items() if node["_meta"]["title"] == title)


def _widgets(node: dict, info: dict) -> dict:
    """Widget name -> value. Values are stored by position, with one more behind a seed (what happens to it after a run)."""
    values = list(node.get("widgets_values") or [])
    result = {}
    names = [slot["widget"]["name"] for slot in node.get("inputs", []) if slot.get("widget")]
    for name in names:
        if not values:
            break
        result[name] = values.pop(0)
        if values and _has_control(name, info) and values[0] in ("fixed", "increment", "decrement", "randomize"):
            values.pop(0)
    return result


def _has_control(name: str, info: dict) -> bool:
    options = {**info["input"].get("required", {}), **info["input"].get("optional", {})}.get(name, [None, {}])
    return name in ("seed", "noise_seed") or bool(len(options) > 1 and options[1].get("control_after_generate"))
