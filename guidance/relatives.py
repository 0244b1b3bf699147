"""The guiders of the methods that Personalization Guidance is compared with. `guider` has their formulas and sources."""

from __future__ import annotations

from ..host import sampling
from ..host.types import Conditioning, Model

THIRD = "weak"  # the name of the guider's third list of conditions
UNTIL, WEIGHT = 0.9, 0.0  # Chan et al., CVPR 2024: T and r


class ThirdPredictionGuider(sampling.CFGGuider):
    """CFG plus `scale` times the step from a third prediction to the positive one."""

    def __init__(self, model: Model, positive: Conditioning, negative: Conditioning, third: Conditioning, scale: float):
        super().__init__(model)
        self.inner_set_conds({"positive": positive, "negative": negative, THIRD: third})
        self.scale = float(scale)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        positive, negative, third = self.conds["positive"], self.conds.get("negative"), self.conds[THIRD]
        return sampling.cfg_and_third(self.inner_model, x, timestep, model_options or {}, positive, negative, third, self.cfg, self.scale)


class SubjectAgnosticGuider(sampling.CFGGuider):
    """CFG whose positive prediction is the one without the subject while t > `until`, then (1 + weight) D(c) - weight D(c0).

    until   T: time from 1 (noise) to 0 (image), as a share of the model's training timesteps
    weight  r, from -1 (without the subject to the end) to 0 (the prompt itself)
    Two predictions a step, three where the weight is between. Raises ValueError for a number outside.
    """

    def __init__(self, model: Model, positive: Conditioning, negative: Conditioning, agnostic: Conditioning, until: float, weight: float):
        super().__init__(model)
        if not 0.0 <= until <= 1.0:  # NaN, too
            raise ValueError(f"`agnostic_until` is {until}; expected a number from 0 (without the subject to the end) to 1 (never).")
        if not -1.0 <= weight <= 0.0:
            raise ValueError(f"`agnostic_weight` is {weight}; expected a number from -1 (as before `agnostic_until`) to 0 (the prompt itself).")
        self.inner_set_conds({"positive": positive, "negative": negative, THIRD: agnostic})
        self.until, self.weight = float(until), float(weight)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        early = float(timestep.max()) > float(sampling.percent_to_sigma(self)(1.0 - self.until))
        positive, negative, agnostic = self.conds["positive"], self.conds.get("negative"), self.conds[THIRD]
        return sampling.cfg_of_two(
            self.inner_model, x, timestep, model_options or {}, positive, agnostic, -(-1.0 if early else self.weight), negative, self.cfg, seed
        )
