"""Kindred for ComfyUI: personalize image models without losing the kind of the subject.

learn  Train Concept: cross-attention K/V, LoRA and token with the Semantic Preservation Loss (ClassDiffusion, ICLR 2025)
say    Conditioning SLERP, Token SLERP: Test-time Embedding Adjustment (TEA, 2025)
draw   KSampler (Personalization Guidance): guidance from an unlearned self at the cost of plain CFG (Steering Guidance, 2025)

This file is the host's door; the nodes are in `nodes/`, what they call in `training/`, `embedding/`, `guidance/`, `evaluation/`; the browser's
part is `web/`.
"""

from comfy_api.latest import ComfyExtension, io

WEB_DIRECTORY = "./web"


class KindredExtension(ComfyExtension):
    async def on_load(self) -> None:
        from .host.runs import add_route

        add_route()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        from .nodes import all_nodes

        return all_nodes()


async def comfy_entrypoint() -> KindredExtension:
    return KindredExtension()
