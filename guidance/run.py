"""One sampling run with a weak model: which conditions are weak, and whether both sides share a forward."""

from __future__ import annotations

import logging
from contextlib import contextmanager

from ..host import batch_rows, sampling, token_rows
from ..host import patcher as host_patcher
from .layers import Weakened
from .rows import Rows, RowsUnknown
from .schedule import percent_of
from .weak_model import WeakModel

log = logging.getLogger(__name__)
KEY = "kindred_guidance"
SECOND = "kindred_weak_model"

# The content of the current prediction.
STRONG, WEAK, BOTH, ELSEWHERE = "strong", "weak", "both", "elsewhere"


class GuidedRun:
    """The state of one sampling run. `predict` and `forward` wrap the host's predictions and forwards."""

    def __init__(self, weak: WeakModel, guider, sides: tuple[str, ...]):
        self.weak, self.schedule = weak, weak.schedule
        self.module = guider.inner_model
        self.percent_to_sigma = sampling.percent_to_sigma(guider)
        self.sides = frozenset(sides)
        self.has_weak_side = sampling.mark_sides(guider, KEY, sides)
        self.rows = Rows(self.schedule.omega)
        self.layers: list[Weakened] = []
        self.content: str | None = None  # STRONG ... of the prediction that runs now; None outside of predictions
        self.weak_lists: frozenset[int] = frozenset()
        self.batch = 0  # rows of one condition in it
        self.apart: str | None = None  # why the two sides cannot share a batch, once that is known
        self.examined = False
        self.predictions = {STRONG: 0, WEAK: 0, ELSEWHERE: 0}

    @contextmanager
    def weights(self, guider):
        """Within it, the weak weights are in the model, or beside it."""
        patcher = guider.model_patcher
        if not self.weak.separate:
            with self.weak.installed(patcher, self.rows, sampling.has_weight_hooks(guider)) as layers:
                self.layers = layers
                yield
            return
        self.second = patcher.get_additional_models_with_key(SECOND)[0]
        if host_patcher.injections(patcher):
            raise ValueError(
                "Personalization Guidance with two separate checkpoints does not work with modules that another node injects: only one of the two would have them. "
                f"Use a LoRA on one checkpoint instead, or remove that node ({', '.join(host_patcher.injections(patcher))})."
            )
        with host_patcher.sampling_settings_of(patcher, self.second):
            yield

    # ---- one prediction ----------------------------------------------------------------------------------------------------------

    def predict(self, executor, model, conds, x_in, timestep, model_options):
        """Wraps one prediction of several lists of conditions."""
        if model is not self.module and not any(sampling.is_marked(one, KEY) for one in conds):
            self.predictions[ELSEWHERE] += 1
            return self._with(ELSEWHERE, executor, model, conds, x_in, timestep, model_options)
        weak = frozenset(i for i, conditions in enumerate(conds) if conditions and self._is_weak(conditions))
        self.predictions[WEAK if weak else STRONG] += 1
        if not weak:
            return self._with(STRONG, executor, model, conds, x_in, timestep, model_options)
        if not (self.schedule.whole and self.schedule.constant):
            sigma = float(timestep.flatten()[0])  # waits for the GPU, so only if needed
            if not self.schedule.whole and not self.schedule.guides(sigma, self.percent_to_sigma):
                strong = next((i for i, conditions in enumerate(conds) if sampling.sides_of(conditions, KEY) == {"positive"}), None)
                if strong is not None:  # no guidance: the weak prediction is the strong one, at no forward
                    left = [None if i in weak else one for i, one in enumerate(conds)]
                    out = self._with(STRONG, executor, model, left, x_in, timestep, model_options)
                    return type(out)(out[strong].clone() if i in weak else one for i, one in enumerate(out))
            self.rows.omega = self.schedule.at(percent_of(sigma, self.percent_to_sigma)) if not self.schedule.constant else self.schedule.omega
        out = self._guided(executor, model, conds, x_in, timestep, model_options, weak)
        self.weak.tell(self.layers, self.second.model_size() if self.weak.separate else sum(layer.nbytes() for layer in self.layers), self.apart)
        return out

    def _is_weak(self, conditions) -> bool:
        """Is a list of conditions weak? Raises RuntimeError if that is not known."""
        sides = sampling.sides_of(conditions, KEY)
        if None not in sides and (sides <= self.sides or not sides & self.sides):
            return sides <= self.sides
        raise RuntimeError(
            "Personalization Guidance got conditions that are not the guider's, or positive and negative ones in one list, so it cannot tell which ones the weak model "
            "predicts. Remove the node that makes or mixes conditions while sampling (Perp-Neg as a model patch, for example; use Perp-Neg Guider), or use plain CFG."
        )

    def _guided(self, executor, model, conds, x_in, timestep, model_options, weak):
        """A prediction with weak lists, in one batch or side by side."""
        present = {i for i, one in enumerate(conds) if one}
        if self.weak.separate:
            options = {name: value for name, value in model_options.items() if name != "multigpu_clones"}
            return self._apart(executor, conds, x_in, timestep, weak, present, {True: (self.second.model, options), False: (model, model_options)})
        if present > weak:
            self.apart = self.apart or self._why_apart(model_options)
            if self.apart is None:
                try:
                    return self._with(BOTH, executor, model, conds, x_in, timestep, model_options, weak)
                except RowsUnknown as reason:
                    self.apart = str(reason)
                    if self.weak.told:
                        log.info("Personalization Guidance: from here on each side has a forward of its own, because %s.", reason)
        return self._apart(executor, conds, x_in, timestep, weak, present, dict.fromkeys((True, False), (model, model_options)))

    def _apart(self, executor, conds, x_in, timestep, weak, present, models):
        """Each side in its own forwards. The other lists are None then, as the host leaves out the negative list at cfg 1."""
        model, options = models[True]
        out = self._with(WEAK, executor, model, [one if i in weak else None for i, one in enumerate(conds)], x_in, timestep, options)
        if present <= weak:
            return out
        model, options = models[False]
        strong = self._with(STRONG, executor, model, [None if i in weak else one for i, one in enumerate(conds)], x_in, timestep, options)
        return type(strong)(out[i] if i in weak else one for i, one in enumerate(strong))

    def _with(self, content, executor, model, conds, x_in, timestep, model_options, weak=frozenset()):
        before = self.content, self.weak_lists, self.batch
        self.content, self.weak_lists, self.batch = content, weak, x_in.shape[0]
        try:
            return executor(model, conds, x_in, timestep, model_options)
        finally:
            self.content, self.weak_lists, self.batch = before

    def _why_apart(self, model_options) -> str | None:
        """Why the rows of a batch with both sides would not be known, or None if they are."""
        if not self.examined:  # once a run: injected modules are in place by now
            self.examined = True
            network = host_patcher.network(self.module)
            reason = batch_rows.undeclared(network, self.weak.paths()) or batch_rows.foreign_code(network)
            if reason:
                return reason
        return batch_rows.foreign_options(model_options, KEY)

    # ---- one forward -------------------------------------------------------------------------------------------------------------

    def forward(self, executor, x, *args, **kwargs):
        """Wraps one forward: sets which of its rows are weak."""
        if self.weak.separate or self.content == ELSEWHERE:
            return executor(x, *args, **kwargs)
        if executor.class_obj is not self.module:
            raise RuntimeError("Personalization Guidance works on one GPU: its weights are not on the others. Remove the multi-GPU node, or use plain CFG.")
        if self.content is None:
            raise RuntimeError(
                "A node called the model outside the host's predictions, so Personalization Guidance cannot tell which conditions that was for. "
                "Remove the node that calls the model itself (a sampler or guider of another pack), or use plain CFG."
            )
        before = self.rows.total, self.rows.spans
        if self.content != BOTH:
            self.rows.one_side(self.content == WEAK)
        else:
            options = _options(args, kwargs)
            self._set_rows(x.shape[0], options.get("cond_or_uncond") or [], options)
        try:
            with token_rows.weakened(_options(args, kwargs), self.rows.spans, self.weak.token_shares(self.rows.omega), self.rows.omega):
                return executor(x, *args, **kwargs)
        finally:
            self.rows.total, self.rows.spans = before

    def _set_rows(self, total: int, chunks: list[int], options: dict) -> None:
        """The rows of a batch whose chunks came from the lists `chunks`, as the host says. Raises RowsUnknown."""
        weak = [side in self.weak_lists for side in chunks]
        if not chunks or len(chunks) * self.batch != total:
            raise RowsUnknown(f"a forward of {total} rows came with {len(chunks)} conditions of {self.batch}")
        if all(weak) or not any(weak):
            self.rows.one_side(all(weak))
            return
        if reason := batch_rows.foreign_patches(options, KEY):  # hooks add some for their own forwards
            raise RowsUnknown(reason)
        spans = []
        for i, side in enumerate(weak):
            start, stop = i * self.batch, (i + 1) * self.batch
            if side:
                spans = [*spans[:-1], (spans[-1][0], stop)] if spans and spans[-1][1] == start else [*spans, (start, stop)]
        self.rows.both_sides(spans, total)

    # ---- afterwards --------------------------------------------------------------------------------------------------------------

    def warn_unused(self, guider) -> None:
        """Warn if guidance had no effect, or not on all layers."""
        if not self.has_weak_side:
            log.warning(
                "Personalization Guidance had no effect: %s has no negative side. Use it with a guider or sampler that takes a negative conditioning.",
                type(guider).__name__,
            )
        elif self.predictions[ELSEWHERE] and not self.predictions[WEAK]:
            log.warning(
                "Personalization Guidance had no effect: %s predicts its negative side with another model. Use a guider with one model.", type(guider).__name__
            )
        elif self.predictions[STRONG] and not self.predictions[WEAK]:
            log.warning(
                "Personalization Guidance had no effect: no negative prediction was made, and it changes nothing else. At cfg 1 the host makes none: set cfg above 1 to use it."
            )
        elif self.predictions[WEAK]:
            idle = sum(not layer.ran for layer in self.layers)
            if idle:
                log.warning(
                    "Personalization Guidance: %d of %d tuned layers were never run by the model (skipped, or read around their forward); they stayed as tuned.",
                    idle,
                    len(self.layers),
                )


def _options(args: tuple, kwargs: dict) -> dict:
    """The transformer options of a forward of the host's model."""
    return args[4] if len(args) > 4 else kwargs.get("transformer_options", {})
