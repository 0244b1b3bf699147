"""Which rows of each forward belong to the weak model: those of the conditions that the guider calls negative.

The host batches the conditions of all sides as memory allows, copies entries of one side into the other for areas, and splits by hooks.
So a LIST is recognised as negative by the identity of its first entry, in a wrapper around the host's batching; inside it, the host's own
`cond_or_uncond` tells for each chunk of a batch from which list it came.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager

from ..host import patcher as host
from ..host import sampling
from .layers import Rows
from .schedule import percent_of
from .weak_model import WeakModel

log = logging.getLogger(__name__)
KEY = "kindred_guidance"
SECOND = "kindred_weak_model"
# Perp-Neg holds the null prompt in a list of its own; guidance goes away from it, too.
WEAK_SIDES = ("negative", "empty_negative_prompt")


def attach(model, weak: WeakModel, sides: tuple[str, ...] = WEAK_SIDES):
    """A clone of `model` on which the negative side of every guider (the conditions that it holds under the names `sides`) is predicted by `weak`."""
    clone = model.clone()
    routing = Routing(weak, sides)
    host.wrap(clone, KEY, sampler_sample=routing.sampler_sample, calc_cond_batch=routing.calc_cond_batch, apply_model=routing.apply_model)
    clone.remove_additional_models(SECOND)
    if weak.separate:
        clone.set_additional_models(SECOND, [weak.second])
    return clone


def detach(model):
    """`model` without guidance of ours: itself where there is none."""
    if not host.is_wrapped(model, KEY):
        return model
    clone = model.clone()
    host.unwrap(clone, KEY)
    clone.remove_additional_models(SECOND)
    return clone


class Routing:
    """The three wrappers of one patched model. All that belongs to a sampling run is in `run`, which is None between runs."""

    def __init__(self, weak: WeakModel, sides: tuple[str, ...]):
        self.weak, self.sides, self.run = weak, sides, None

    def sampler_sample(self, executor, guider, *args, **kwargs):
        """Around the whole run: the weak weights are in place inside, and gone afterwards."""
        outer, self.run = self.run, Run(self.weak, guider, self.sides)
        try:
            with self.run.weights(guider):
                result = executor(guider, *args, **kwargs)
            self.run.warn_unused(guider)
            return result
        finally:
            self.run = outer

    def calc_cond_batch(self, executor, model, conds, x_in, timestep, model_options):
        """Around one prediction of several lists of conditions."""
        if self.run is None:
            return executor(model, conds, x_in, timestep, model_options)
        return self.run.predict(executor, model, conds, x_in, timestep, model_options)

    def apply_model(self, executor, x, *args, **kwargs):
        """Around one forward: name its weak rows."""
        if self.run is None or self.run.weak.separate:
            return executor(x, *args, **kwargs)
        options = args[4] if len(args) > 4 else kwargs.get("transformer_options", {})
        with self.run.rows_of(executor.class_obj, x, options.get("cond_or_uncond")):
            return executor(x, *args, **kwargs)


class Run:
    """One sampling run."""

    def __init__(self, weak: WeakModel, guider, sides: tuple[str, ...]):
        self.weak, self.schedule = weak, weak.schedule
        self.module = guider.inner_model
        self.percent_to_sigma = sampling.percent_to_sigma(guider)
        self.weak_ids = set().union(*(sampling.own_ids(guider, side) for side in sides if guider.conds.get(side)))
        self.positive_ids = sampling.own_ids(guider, "positive") if guider.conds.get("positive") else set()
        self.rows = Rows(self.schedule.omega)
        self.lists: frozenset[int] = frozenset()  # indices of the weak lists of the prediction that runs now
        self.batch = 0  # rows of one chunk in it; 0 outside of a prediction
        self.predictions = 0

    @contextmanager
    def weights(self, guider):
        patcher = guider.model_patcher
        if not self.weak.separate:
            with self.weak.installed(patcher, self.rows, sampling.has_weight_hooks(guider)) as layers:
                self.layers = layers
                yield
            return
        self.second = patcher.get_additional_models_with_key(SECOND)[0]
        self.weak.tell_separate(self.second.model_size())
        with host.following(patcher, self.second):
            yield

    def predict(self, executor, model, conds, x_in, timestep, model_options):
        weak = frozenset(i for i, conditions in enumerate(conds) if sampling.first_id(conditions) in self.weak_ids)
        self.predictions += bool(weak)
        if not weak:
            return self._forward(executor, model, conds, x_in, timestep, model_options, weak)
        if not (self.schedule.whole and self.schedule.constant):
            sigma = float(timestep.flatten()[0])  # waits for the GPU, so only where asked for
            if not self.schedule.whole and not self.schedule.guides(sigma, self.percent_to_sigma):
                strong = next((i for i, conditions in enumerate(conds) if sampling.first_id(conditions) in self.positive_ids), None)
                if strong is not None:  # no guidance: the weak prediction is the strong one, at no forward
                    out = self._forward(
                        executor, model, [None if i in weak else one for i, one in enumerate(conds)], x_in, timestep, model_options, frozenset()
                    )
                    return type(out)(out[strong].clone() if i in weak else one for i, one in enumerate(out))
            self.rows.omega = self.schedule.at(percent_of(sigma, self.percent_to_sigma)) if not self.schedule.constant else self.schedule.omega
        if self.weak.separate:
            return self._two_modules(executor, model, conds, x_in, timestep, model_options, weak)
        return self._forward(executor, model, conds, x_in, timestep, model_options, weak)

    def _forward(self, executor, model, conds, x_in, timestep, model_options, weak):
        before = self.lists, self.batch
        self.lists, self.batch = weak, x_in.shape[0]
        try:
            return executor(model, conds, x_in, timestep, model_options)
        finally:
            self.lists, self.batch = before

    def _two_modules(self, executor, model, conds, x_in, timestep, model_options, weak):
        options = {name: value for name, value in model_options.items() if name != "multigpu_clones"}
        out = executor(self.second.model, [one if i in weak else None for i, one in enumerate(conds)], x_in, timestep, options)
        if len(weak) == len([one for one in conds if one is not None]):
            return out
        strong = executor(model, [None if i in weak else one for i, one in enumerate(conds)], x_in, timestep, model_options)
        return type(strong)(out[i] if i in weak else one for i, one in enumerate(strong))

    @contextmanager
    def rows_of(self, module, x, chunks: list[int] | None):
        """While open, the layers know the weak rows of a batch `x` whose chunks came from the lists `chunks`."""
        spans = []
        if self.lists and self.batch:
            if module is not self.module:
                raise RuntimeError(
                    "Personalization Guidance works on one GPU: its weights are not on the others. Take the multi-GPU node out, or use plain CFG."
                )
            if chunks is None or len(chunks) * self.batch != x.shape[0]:
                raise RuntimeError(
                    f"A batch of {x.shape[0]} rows came with {len(chunks or ())} conditions of {self.batch} rows each: another node splits batches without saying which "
                    "conditions are in them, so the weak rows are unknown. Remove that node (a model function wrapper), or use plain CFG."
                )
            for i, side in enumerate(chunks):
                if side in self.lists:
                    start, stop = i * self.batch, (i + 1) * self.batch
                    if spans and spans[-1][1] == start:
                        start = spans.pop()[0]
                    spans.append((start, stop))
        before = self.rows.spans, self.rows.total
        self.rows.set(spans, x.shape[0])
        try:
            yield
        finally:
            self.rows.set(*before)

    def warn_unused(self, guider) -> None:
        """What was asked for and did nothing is told."""
        if not self.weak_ids:
            log.warning(
                "Personalization Guidance had no effect: %s has no negative side. Use it with a guider or sampler that takes a negative conditioning.",
                type(guider).__name__,
            )
        elif self.predictions and not self.weak.separate:
            idle = sum(not layer.ran for layer in self.layers)
            if idle:
                log.warning(
                    "Personalization Guidance: %d of %d tuned layers were never run by the model (skipped, or read around their forward); they stayed as tuned.",
                    idle,
                    len(self.layers),
                )
