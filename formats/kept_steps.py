"""The files of a run's measured steps, from which Save Concept can choose: ordinary concepts below the run's folder.

RUN/steps/loras/NAME-step100.safetensors        what was learned after 100 steps, in float32, under core's names
RUN/steps/embeddings/NAME-step100.safetensors   its token
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from . import concept_file, manifest, safefile, token_file
from .token import LearnedToken

LAST, BEST = "last", "best"
_OF_THE_FILE = ("format", "modelspec.title", "ss_output_name", manifest.KEY)  # metadata that a save writes anew
_STEP = re.compile(r"-step([1-9]\d*)\.safetensors")


@dataclass(frozen=True)
class KeptSteps:
    """What a run's result tells of the files beside it.

    folder   RUN/steps;  last: the step of the result itself
    best     the best measured step, or None;  why: a sentence that says why there is none
    tokens   digests of the result's token vectors: tokens that were changed since are no longer the run's
    """

    folder: Path
    last: int
    best: int | None
    why: str
    tokens: tuple[tuple[str, ...], ...]

    @property
    def steps(self) -> list[int]:
        return sorted(files(self.folder))


def files(folder: Path) -> dict[int, Path]:
    """Step -> its LoRA file, of the steps that are kept in `folder` (RUN/steps)."""
    try:
        found = list((folder / "loras").iterdir())
    except OSError:
        return {}
    return {int(match[1]): path for path in found if (match := _STEP.search(path.name)) and path.name.endswith(match[0])}


def remove(folder: Path, step: int) -> None:
    """Remove a step's files, the LoRA last: as long as it is there, it names the others. OSError from the disk."""
    path = files(folder)[step]
    for entry in manifest.parse(manifest.metadata_of(path)):
        (folder / "embeddings" / Path(entry.file).name).unlink(missing_ok=True)
    path.unlink()


def load(folder: Path, step: int) -> tuple[concept_file.LearnedLora, list[LearnedToken]]:
    """The result after `step` steps as the run had it, bit for bit. ValueError if its files are gone or damaged."""
    path = files(folder).get(step)
    if path is None:
        raise ValueError(f"The files of step {step} are gone. They were in {str(folder)!r}.")
    embeddings, widths = folder / "embeddings", {}
    for entry in manifest.parse(safefile.metadata(path)):
        if (file := embeddings / Path(entry.file).name).is_file():
            widths |= token_file.own_widths(file)
    lora, tokens = concept_file.load(path, widths, lambda name: file if (file := embeddings / name).is_file() else None)
    metadata = {key: value for key, value in getattr(lora, "metadata", {}).items() if key not in _OF_THE_FILE}
    return concept_file.LearnedLora(lora, metadata), tokens


def check_which(which: str) -> str:
    """`which` in its plain form: "last", "best" or a number. ValueError for anything else."""
    wanted = which.strip().lower() or LAST
    if wanted not in (LAST, BEST) and not re.fullmatch(r"0*[1-9]\d{0,8}", wanted):
        raise ValueError(f"which is {which!r}; expected 'last', 'best' or the number of a step, for example '300'.")
    return wanted


def choose(which: str, lora, tokens: list[LearnedToken]) -> tuple[dict, list[LearnedToken], int | None]:
    """(LoRA, tokens, their step or None) that `which` asks for: "last" is what was given; "best", or a number, a step whose files the run kept.

    Raises ValueError for a step that was not kept, for "best" where nothing was measured, and for anything but the result of Train Concept.
    """
    wanted = check_which(which)
    if wanted == LAST:
        return lora, tokens, None
    kept: KeptSteps | None = getattr(lora, "kept", None)
    if kept is None:
        raise ValueError(
            f"which is {which!r}, but this LoRA carries no steps to choose from. Connect the outputs of Train Concept, whose keep_steps and save_every must be above 0, or set which to 'last'."
        )
    if wanted == BEST and kept.best is None:
        raise ValueError(kept.why)
    step = kept.best if wanted == BEST else int(wanted)
    assert step is not None
    if tuple(manifest.digests(token.vectors) for token in tokens) != kept.tokens:
        raise ValueError(
            f"which is {which!r}, but the tokens were changed after the training (Token SLERP, perhaps), which the files of a step know nothing of. "
            "Connect the tokens of Train Concept, or set which to 'last'."
        )
    if step == kept.last:
        return lora, tokens, step
    if step not in kept.steps:
        there = ", ".join(map(str, kept.steps)) or "none"
        raise ValueError(
            f"Step {step} was not kept. The kept steps are {there}, and the last is {kept.last}. Choose one of these; keep_steps says how many are kept. They are in {str(kept.folder)!r}."
        )
    return *load(kept.folder, step), step
