"""Routing: the weak model predicts the conditions that the guider calls negative, under any sampler, guider and batching.

At the start of a run each condition is marked with the name of its list (positive, negative, ...). Marks survive what the host and other
packs do with conditions: copies for areas, windows, other orders. In each prediction, the lists with a weak mark are weak. Both sides share
a batch if its rows are known (`host.batch_rows`); otherwise they run one after the other.
"""

from __future__ import annotations

import sys

from ..host import patcher as host_patcher
from ..host import sampling
from . import null_prompt
from .run import KEY, SECOND, GuidedRun, log
from .weak_model import WeakModel

# Perp-Neg has the null prompt in a list of its own; guidance points away from it, too.
WEAK_SIDES = ("negative", "empty_negative_prompt")


def attach(model, weak: WeakModel, sides: tuple[str, ...] = WEAK_SIDES):
    """A clone of `model` on which `weak` predicts the negative side of every guider: its conditions with the names `sides`."""
    clone = model.clone()
    routing = Routing(weak, sides)
    host_patcher.wrap(clone, KEY, outer_sample=routing.outer_sample, sampler_sample=routing.sampler_sample)
    host_patcher.add_callbacks(clone, KEY, on_pre_run=routing.pre_run, on_cleanup=routing.cleanup)
    clone.remove_additional_models(SECOND)
    if weak.separate:
        clone.set_additional_models(SECOND, [weak.second])
    return clone


def detach(model):
    """`model` without our guidance; itself if it has none."""
    if not host_patcher.has_wrappers(model, KEY):
        return model
    clone = model.clone()
    host_patcher.unwrap(clone, KEY)
    clone.remove_additional_models(SECOND)
    return clone


class Routing:
    """The hooks of one patched model. All state of a run is in `run`, which is None between runs."""

    def __init__(self, weak: WeakModel, sides: tuple[str, ...]):
        self.weak, self.sides, self.run = weak, sides, None
        self.sampled = True

    def outer_sample(self, executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
        """Around the whole run, before the model is loaded and the conditions are prepared."""
        null_prompt.encode_again(executor.class_obj, self.sides, self.weak.schedule, sigmas)
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)

    def sampler_sample(self, executor, guider, sigmas, extra_args, *args, **kwargs):
        """Around the whole run: the weak weights are in place inside, and gone afterwards."""
        outer, self.run, self.sampled = self.run, GuidedRun(self.weak, guider, self.sides), True
        # added here, so inside the wrappers of all other packs, which may cut a prediction into windows
        sampling.add_wrappers(extra_args["model_options"], KEY, calc_cond_batch=self.run.predict, apply_model=self.run.forward)
        try:
            with self.run.weights(guider):
                result = executor(guider, sigmas, extra_args, *args, **kwargs)
            self.run.warn_unused(guider)
            return result
        finally:
            self.run = outer

    def pre_run(self, patcher) -> None:
        """The host loaded a model with this guidance for a run."""
        self.sampled = False

    def cleanup(self, patcher) -> None:
        """The run is over. A guider that has this model only beside its main one never calls our wrapper."""
        if not self.sampled and sys.exc_info()[0] is None:
            log.warning(
                "Personalization Guidance had no effect: its model was not the main model of the guider (but the negative one of Dual Model CFG Guider, for example). "
                "Connect it to the `model` of a sampler or guider with a negative conditioning."
            )
        self.sampled = True
