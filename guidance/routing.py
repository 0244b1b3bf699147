"""Where the weak model predicts: for the conditions that the guider calls negative, under any sampler, guider and batching.

At the start of a run each condition is marked with the name of the list that holds it (positive, negative ...). Marks survive what the host and
other packs do with conditions: copies for areas, windows, other orders. Prediction by prediction the lists with a weak mark are weak.
Both sides go through the model in one batch where the host and this run promise where the rows are (`host.layouts`); else one after the other.
"""

from __future__ import annotations

import sys

from ..host import patcher as host
from ..host import sampling
from ..host.types import Model
from .run import KEY, SECOND, Run, log
from .weak_model import WeakModel

# Perp-Neg holds the null prompt in a list of its own; guidance goes away from it, too.
WEAK_SIDES = ("negative", "empty_negative_prompt")


def attach(model: Model, weak: WeakModel, sides: tuple[str, ...] = WEAK_SIDES) -> Model:
    """A clone of `model` on which the negative side of every guider (the conditions that it holds under the names `sides`) is predicted by `weak`."""
    clone = model.clone()
    routing = Routing(weak, sides)
    host.wrap(clone, KEY, sampler_sample=routing.sampler_sample)
    host.call_back(clone, KEY, on_pre_run=routing.pre_run, on_cleanup=routing.cleanup)
    clone.remove_additional_models(SECOND)
    if weak.second is not None:
        clone.set_additional_models(SECOND, [weak.second])
    return clone


def detach(model: Model) -> Model:
    """`model` without guidance of ours: itself where there is none."""
    if not host.is_wrapped(model, KEY):
        return model
    clone = model.clone()
    host.unwrap(clone, KEY)
    clone.remove_additional_models(SECOND)
    return clone


class Routing:
    """What one patched model does in a run. All that belongs to a run is in `run`, which is None between runs."""

    def __init__(self, weak: WeakModel, sides: tuple[str, ...]):
        self.weak, self.sides, self.run = weak, sides, None
        self.sampled = True

    def sampler_sample(self, executor, guider, sigmas, extra_args, *args, **kwargs):
        """Around the whole run: the weak weights are in place inside, and gone afterwards."""
        outer, self.run, self.sampled = self.run, Run(self.weak, guider, self.sides), True
        # added here, and so inside those of all other packs, which may cut a prediction into windows
        sampling.add_wrappers(extra_args["model_options"], KEY, calc_cond_batch=self.run.predict, apply_model=self.run.forward)
        try:
            with self.run.weights(guider):
                result = executor(guider, sigmas, extra_args, *args, **kwargs)
            self.run.warn_unused(guider)
            return result
        finally:
            self.run = outer

    def pre_run(self, patcher: Model) -> None:
        """The host loaded a model with this guidance for a run."""
        self.sampled = False

    def cleanup(self, patcher: Model) -> None:
        """The run is over. A guider that holds the model beside its main one never asks for our wrapper."""
        if not self.sampled and sys.exc_info()[0] is None:
            log.warning(
                "Personalization Guidance had no effect: its model was not the main model of the guider (but the negative one of Dual Model CFG Guider, for example). "
                "Connect it to the `model` of a sampler or guider with a negative conditioning."
            )
        self.sampled = True
