"""A run's curves in bounded room: nothing is lost but detail."""

import json
import math

from kindred_testing import pack


def test_a_long_run_keeps_its_means_and_its_first_and_last_step():
    curves = pack("formats.curves").Curves(["<v1>"])
    for step in range(1, 3001):
        curves.add(step, {"loss": float(step), "spl": 0.5, "learning_rate": 1e-4, "leak": 0.0}, {"<v1>": 0.25} if step % 10 == 1 else {})
    saved = json.loads(json.dumps(curves.as_json(), allow_nan=False))
    room = pack("formats.curves").MAX_ENTRIES
    assert room / 2 < len(saved["loss"]) <= room and saved["from"] == 1 and saved["every"] * (len(saved["loss"]) - 1) < 3000
    for index, value in enumerate(saved["loss"][:-1]):
        first = 1 + index * saved["every"]
        assert abs(value - (first + (saved["every"] - 1) / 2)) < 1e-3 * value
    assert set(saved["spl"]) == {0.5} and saved["learning_rate"] == 1e-4 and set(saved["drift"]["<v1>"][:-1]) == {0.25}
    assert len(json.dumps(saved)) < 8000


def test_a_drift_that_is_watched_only_now_and_then_leaves_gaps_and_no_nan():
    curves = pack("formats.curves").Curves(["<v1>"])
    for step in range(1, 4):
        curves.add(step, {"loss": 1.0, "spl": 0.0, "learning_rate": step * 1e-4, "leak": math.nan if step == 1 else 0.1}, {"<v1>": 0.1} if step == 2 else {})
    assert curves.as_json() == {
        "from": 1,
        "every": 1,
        "loss": [1, 1, 1],
        "spl": [0, 0, 0],
        "learning_rate": [1e-4, 2e-4, 3e-4],
        "leak": [None, 0.1, 0.1],
        "drift": {"<v1>": [None, 0.1, None]},
    }


def test_what_is_not_finite_is_null_however_deep():
    """Case 43. NaN and Infinity are no JSON: a page stops at them."""
    finite = pack("formats.curves").finite
    told = finite({"loss": float("nan"), "drift": {"<v1>": float("-inf")}, "list": [1.5, (float("inf"), "x", None, True)], "step": 3})
    assert json.loads(json.dumps(told, allow_nan=False)) == {"loss": None, "drift": {"<v1>": None}, "list": [1.5, [None, "x", None, True]], "step": 3}
