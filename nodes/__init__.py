"""The graph's face of Kindred: each module holds the nodes of one room and ends with their list `NODES`."""

from importlib import import_module

from comfy_api.latest import io

MODULES = ("concept", "prior", "training", "files", "embedding", "guidance", "samplers", "evaluation", "grid")


def all_nodes() -> list[type[io.ComfyNode]]:
    """Every node class of the pack, in the order of a user's way: learn, keep, say, draw, measure."""
    return [node for name in MODULES for node in import_module(f".{name}", __name__).NODES]
