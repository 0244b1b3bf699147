"""The register of adapter kinds: node, settings, usual learning rates, metadata and documentation read it.

To add a kind, write its file in this folder with a class `Kind` (a `side.Side`) and add its row here. docs/adding.md walks through it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

LYCORIS = "lycoris.kohya"


@dataclass(frozen=True)
class AdapterKind:
    """One kind of adapter.

    module     the file in this folder; imported when a training needs it, never at start-up
    what       what it learns, in one sentence for the documentation
    rank       what the setting `rank` means for it; "" = it is not used
    alpha      what the setting `alpha` means for it; "" = it is not used
    rate       the usual learning rate on the network
    reader     the module that kohya's tools load such a file with (`ss_network_module`)
    algo       LyCORIS's name of the algorithm if LyCORIS is the reader; "full" for a file of whole differences (`diff`)
    """

    module: str
    what: str
    rank: str
    alpha: str
    rate: float = 1e-4
    reader: str = LYCORIS
    algo: str = ""

    def __post_init__(self):
        if (self.reader == LYCORIS) != bool(self.algo):
            raise ValueError(
                f"The kind in {self.module}.py needs `algo` if its reader is {LYCORIS}, and only then; 'full' is a file of whole differences (`diff`)."
            )


KINDS: dict[str, AdapterKind] = {
    "LoRA": AdapterKind(
        "lora",
        "Adds a product of two thin matrices to each weight (Hu et al., 2021). Every tool reads it, and it costs the least.",
        rank="width of the two matrices",
        alpha="the product is scaled by alpha / rank",
        reader="networks.lora",
    ),
    "DoRA": AdapterKind(
        "dora",
        "A LoRA for the direction of each weight, and its magnitude apart (Liu et al., 2024).",
        rank="width of the two matrices",
        alpha="the product is scaled by alpha / rank",
        reader="networks.lora",
    ),
    "LoHa": AdapterKind(
        "loha",
        "Adds the elementwise product of two LoRAs: rank squared from twice the parameters (FedPara, 2021; LyCORIS).",
        rank="width of each of the two LoRAs",
        alpha="the product is scaled by alpha / rank",
        algo="loha",
    ),
    "LoKr": AdapterKind(
        "lokr",
        "Adds a Kronecker product of two small matrices (LyCORIS).",
        rank="about the size of the first factor",
        alpha="",
        algo="lokr",
    ),
    "OFT": AdapterKind(
        "oft",
        "Rotates the outputs of each layer in blocks, so that angles between neurons stay (Qiu et al., 2023).",
        rank="about the size of a rotated block",
        alpha="bound of the rotation; auto: none",
        algo="oft",
    ),
    "SVDiff": AdapterKind(
        "svdiff",
        "Shifts the singular values of each weight: a few hundred numbers a layer (Han et al., 2023). Saved as whole differences, or compressed.",
        rank="",
        alpha="",
        rate=1e-3,
        algo="full",
    ),
}


def adapter_kind(name: str) -> AdapterKind:
    """The row of a kind. ValueError with the known names if there is none."""
    if name not in KINDS:
        raise ValueError(f"The kind of adapter is {name!r}; expected one of {', '.join(map(repr, KINDS))}.")
    return KINDS[name]


def side_class(name: str) -> type:
    """The class that is put beside each layer. ValueError for an unknown kind."""
    return import_module(f".{adapter_kind(name).module}", __package__).Kind
