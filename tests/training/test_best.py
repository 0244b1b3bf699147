"""Which step was best: the rule on curves as runs have them."""

import pytest
from kindred_testing import pack


def marks(**columns):
    """Marks at steps 100, 200, ... from lists of measures; a step with likeness or prompt was previewed."""
    mark = pack("training.measures").Mark
    count = len(next(iter(columns.values())))
    drawn = bool({"likeness", "prompt"} & columns.keys())
    return [mark(100 * (index + 1), previewed=drawn, **{name: values[index] for name, values in columns.items()}) for index in range(count)]


RISING, FALLING = [0.30, 0.55, 0.70, 0.74, 0.75], [0.32, 0.315, 0.30, 0.25, 0.20]


@pytest.mark.parametrize(
    "columns, wanted",
    [
        ({"likeness": RISING, "prompt": FALLING}, 300),  # the knee: 0.89 of one, 0.83 of the other
        ({"likeness": [0.1, 0.2], "prompt": [0.3, 0.2]}, 100),  # each is the worst in something: the earlier
        ({"likeness": [0.2, 0.2, 0.2], "prompt": [0.3, 0.31, 0.31]}, 200),  # what does not move does not count; of equals the earlier
        ({"likeness": RISING}, 400),  # the last five hundredths are not worth the steps
        ({"heldout": [0.3, 0.2, 0.15, 0.15, 0.2]}, 300),
        ({"prompt": [0.32, 0.32, 0.319, 0.25, 0.2]}, 300),  # the last before the prompt is lost
        ({"prompt": FALLING, "heldout": [0.4, 0.2, 0.12, 0.1, 0.1]}, 300),  # the held-out loss stands for likeness
        ({"likeness": RISING, "heldout": [0.1, 0.2, 0.3, 0.4, 0.5]}, 400),
    ],
)
def test_the_rule(columns, wanted):
    assert pack("training.best").best(marks(**columns)) == wanted


def test_units_do_not_matter():
    best = pack("training.best").best
    one = best(marks(likeness=RISING, prompt=FALLING))
    assert one == best(marks(likeness=[100 * value - 7 for value in RISING], prompt=[value / 50 for value in FALLING]))


def test_steps_whose_files_are_gone_are_no_choice_but_still_set_the_scale():
    best = pack("training.best").best
    assert best(marks(likeness=RISING, prompt=FALLING), {100, 400, 500}) == 400
    assert best(marks(likeness=RISING, prompt=FALLING), set()) is None


def test_a_held_out_loss_between_previews_is_no_candidate():
    """Only steps with pictures compete where there are pictures; without any measure there is no best step."""
    mark, best = pack("training.measures").Mark, pack("training.best").best
    assert best([mark(50, 0.1), mark(100, 0.3, 0.5, 0.5, True), mark(150, 0.1), mark(200, 0.2, 0.6, 0.5, True)]) == 200
    assert best([mark(100, previewed=True)]) is None and best([]) is None
