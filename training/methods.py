"""The register of methods: what a run learns. Node, settings, advice, metadata and documentation read it. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One method.

    what     what is learned, with its source: one clause for the tooltip
    network  what is trained on the network, a key of `learned.NETWORKS`; "" = nothing
    tokens   each concept's token has vectors of its own
    rate     usual learning rate on the network; None = the adapter's (`kinds.KINDS`)
    token_rate  usual learning rate of the tokens' vectors
    groups   the groups of settings that only such methods have (`declare.GROUPS`)
    less_memory  what of it needs less memory, for the advice after an out-of-memory error
    """

    what: str
    network: str
    tokens: bool
    rate: float | None
    token_rate: float
    groups: tuple[str, ...]
    less_memory: str = ""

    @property
    def trains_text_encoder(self) -> bool:
        """May the text encoder get an adapter, too?"""
        return self.network == "adapter"


METHODS: dict[str, Method] = {
    "kv + token": Method(  # 2e-5: ClassDiffusion's code, 1e-5 times its batch of 2
        "the K and V projections of every cross-attention and each token's vector (ClassDiffusion)",
        network="kv",
        tokens=True,
        rate=2e-5,
        token_rate=2e-5,
        groups=("token",),
        less_memory="choose the method 'lora + token' with rank 8, which keeps less beside the model",
    ),
    "lora + token": Method(  # 5e-4: the usual rate of pivotal tuning
        "an adapter and the token (pivotal tuning)", network="adapter", tokens=True, rate=None, token_rate=5e-4, groups=("adapter", "token")
    ),
    "lora": Method(
        "an adapter alone, with a rare word as the token (DreamBooth)", network="adapter", tokens=False, rate=None, token_rate=0.0, groups=("adapter",)
    ),
    "token": Method(  # 5e-4: diffusers' textual inversion
        "the vector alone (textual inversion)", network="", tokens=True, rate=0.0, token_rate=5e-4, groups=("token",)
    ),
}
