"""How a run is watched and kept: settings that change nothing of what is learned."""

from __future__ import annotations

from dataclasses import dataclass

from .declare import check, declared, setting

NO_SCORER = "none"


@dataclass(frozen=True)
class WatchSettings:
    """Previews and measurements while training. They change nothing of what is learned, bit for bit."""

    preview_every: int = setting(0, "Draw the preview prompt every N steps. 0 = never.", "main", least=0, most=100_000, optional=True)
    preview_prompt: str = setting(
        "a photo of a {token} {class} on the beach",
        "Prompts of the previews, one a line. Each is drawn for every concept in turn, whose token and class word stand for {token} and {class}.",
        "watching",
        advanced=True,
        lines=True,
    )
    preview_omega: float = setting(
        0.6, "Personalization Guidance's omega for the previews. 1 = plain CFG.", "watching", least=0, most=1, step=0.05, advanced=True
    )
    preview_cfg: float = setting(7.5, "Guidance scale of the previews.", "watching", least=0, most=100, step=0.1, advanced=True)
    heldout_every: int = setting(
        50,
        "Measure the loss on held-out views and noise every N steps, and at each preview. The same ones each time, so that curves compare. 0 = never.",
        "watching",
        least=0,
        most=100_000,
        advanced=True,
    )
    preview_clip: str = setting(
        NO_SCORER,
        "Score the previews with this CLIP model of yours, a folder in models/evaluation as for Evaluate Pictures: prompt fidelity (CLIP-T), and likeness to the photos (CLIP-I).",
        "watching",
        advanced=True,
        scorer="clip",
    )
    preview_dino: str = setting(
        NO_SCORER,
        "Score the previews' likeness to the photos with this DINO model of yours, a folder in models/evaluation. It takes the place of CLIP-I.",
        "watching",
        advanced=True,
        scorer="dino",
    )
    stop_after: int = setting(
        0,
        "Stop early on a plateau: when the best step has not changed for N measured steps. 0 = train all steps.",
        "watching",
        least=0,
        most=1000,
        advanced=True,
    )

    def __post_init__(self):
        check(self)

    @property
    def scorers(self) -> dict[str, str]:
        """Kind of scoring model -> folder, for those that are chosen."""
        return {one.scorer: folder for one in declared(type(self)) if one.scorer and (folder := getattr(self, one.name)) != NO_SCORER}


NEW, CONTINUE = RESUME = ("new run", "continue")


@dataclass(frozen=True)
class KeepSettings:
    """How a run is kept on the disk. They change nothing of what is learned."""

    resume: str = setting(
        NEW,
        "continue: go on from the newest state of run_name, also of a finished run with more steps. Photos and settings must be the same; steps, learning rates and weights of losses may change.",
        "main",
        choices=RESUME,
        optional=True,
    )
    run_name: str = setting(
        "",
        "Folder of the training states, in output/kindred/runs. Empty = named after the tokens. A new run never overwrites another.",
        "keeping",
        advanced=True,
    )
    save_every: int = setting(
        100,
        "Save a state every N steps, so that an interrupted or crashed run can continue. 0 = save nothing.",
        "keeping",
        least=0,
        most=100_000,
        advanced=True,
    )
    keep_steps: int = setting(
        5,
        "Keep the result of the last N measured steps, and of the best one, as files that Save Concept can choose from. 0 = keep none.",
        "keeping",
        least=0,
        most=1000,
        advanced=True,
    )

    def __post_init__(self):
        check(self)
