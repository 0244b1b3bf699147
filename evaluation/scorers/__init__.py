"""The table of scoring models, for Evaluate Pictures, the list of folders, messages and documentation.

To add a type of model, write its file in this folder with `load(folder, device) -> list[Scorer]` and add its row here. docs/adding.md walks
through it. Nothing is ever downloaded: the user provides a folder with weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ...formats import text_file

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ScoringModel:
    """One type of scoring model.

    module    the file in this folder; imported when a picture is scored, never at start-up
    what      what to put into the folder, with its article
    types     `model_type` in the folder's config.json
    measures  measure -> the question that it answers, for the documentation
    """

    module: str
    what: str
    types: tuple[str, ...]
    measures: Mapping[str, str]

    def __post_init__(self):
        if not (self.module and self.what and self.types and self.measures):
            raise TypeError(f"The scoring model {self.module or self.what!r} is incomplete: it needs a module, a description, types and measures.")


MODELS: dict[str, ScoringModel] = {  # the node's input -> its model, in the order of the inputs; add new ones at the end
    "clip": ScoringModel(
        "clip",
        "a CLIP model",
        ("clip",),
        {
            "CLIP-T": "does the picture show the prompt? Cosine of image and text feature",
            "CLIP-I": "does it show the subject? Mean cosine with the photos' features",
        },
    ),
    "dino": ScoringModel(
        "dino",
        "a DINO vision transformer",
        ("vit", "dinov2", "dinov3_vit"),
        {"DINO": "does it show *this* subject? Mean cosine of class tokens; the most sensitive to identity"},
    ),
    "blip2": ScoringModel(
        "blip",
        "a BLIP-2 or BLIP retrieval model",
        ("blip-2", "blip"),
        {
            "BLIP2-T": "does the picture show the prompt? The contrastive score of BLIP-2, as ClassDiffusion's paper says",
            "BLIP-T": "the same of BLIP 1, which its released code loads",
        },
    ),
    "pickscore": ScoringModel(
        "pickscore",
        "PickScore's weights",
        ("clip",),
        {"PickScore": "would people prefer the picture for the prompt? Scaled cosine of a CLIP trained on preferences"},
    ),
}


_ADDED: dict[str, tuple[str, Callable]] = {}  # model_type -> (the model of the table that it stands for, its `load`)


def add(type_: str, kind: str, load: Callable) -> None:
    """Let folders whose `model_type` is `type_` serve as the model `kind`. For programs around the pack: the demo adds the judge of its miniature world."""
    if kind not in MODELS:
        raise ValueError(f"There is no scoring model {kind!r}; expected one of {', '.join(MODELS)}.")
    _ADDED[type_] = (kind, load)


def folders(kind: str) -> list[str]:
    """The user's folders in models/evaluation that hold the model `kind`, sorted by name."""
    from ...host import scoring

    return [name for name, found in scoring.models().items() if found in MODELS[kind].types or _ADDED.get(found, ("",))[0] == kind]


def _loader(kind: str, folder: Path) -> Callable:
    found = text_file.model_type(folder)
    return _ADDED[found][1] if found in _ADDED else import_module(f".{MODELS[kind].module}", __package__).load


def load(folders: Mapping[str, Path], device: str | torch.device = "cpu") -> list:
    """The scorers of the models in the user's `folders`, by name, in the table's order. Raises ValueError if a folder does not hold its model."""
    for name in folders:
        if name not in MODELS:
            raise ValueError(f"There is no scoring model {name!r}; expected one of {', '.join(MODELS)}.")
    chosen = [(name, folders[name]) for name in MODELS if name in folders]
    return [scorer for name, folder in chosen for scorer in _loader(name, folder)(folder, device)]
