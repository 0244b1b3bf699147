"""Labelled Grid: every picture in its place, pixel for pixel, and labels that can be read."""

import pytest
import torch
from kindred_testing import pack


def grid(*args, **kwargs):
    return pack("evaluation.grid").grid(*args, **kwargs)


def flat(value: float, pictures: int = 1, height: int = 300, width: int = 256) -> torch.Tensor:
    return torch.full((pictures, height, width, 3), value)


def test_pictures_stand_in_order_with_their_pixels():
    images = [torch.rand(2, 300, 256, 3), torch.rand(1, 300, 256, 3), torch.rand(1, 300, 256, 3)]
    sheet = grid(images, ["a", "b", ""], "all of them", columns=2)[0]
    found = []
    for image in (images[0][0], images[0][1], images[1][0], images[2][0]):
        corner = (sheet[:, :, :] - image[0, 0]).abs().sum(-1).lt(1e-6).nonzero()
        places = [(int(y), int(x)) for y, x in corner if torch.equal(sheet[y : y + 300, x : x + 256], image)]
        assert len(places) == 1
        found += places
    (first, below, right, second_row) = found
    assert first[0] == right[0] and below[1] == first[1] == second_row[1]
    assert below[0] == first[0] + 312 and right[1] == first[1] + 268 and second_row[0] > below[0] + 300


def test_labels_are_written_where_there_are_some():
    plain, labelled = grid([flat(0.5), flat(0.5)], []), grid([flat(0.5), flat(0.5)], ["omega 0", "omega 1"])
    assert labelled.shape[1] > plain.shape[1]
    band = labelled[0, 24 : labelled.shape[1] - plain.shape[1] + 24]
    left, right = band[:, : band.shape[1] // 2], band[:, band.shape[1] // 2 :]
    assert (left > 0.7).any() and (right > 0.7).any() and not torch.equal(left[:, 24:], right[:, :-24])
    long = grid([flat(0.5)], ["a label much longer than its picture is wide, which therefore ends in an ellipsis before the margin"])
    assert not (long[0, :, :24] > 0.7).any() and not (long[0, :, -24:] > 0.7).any()


def test_small_pictures_are_enlarged_whole_and_more_labels_than_pictures_refused():
    small = torch.rand(1, 64, 64, 3)
    sheet = grid([small], [])[0]
    assert torch.equal(sheet[24:-24, 24:-24][::4, ::4], small[0])
    with pytest.raises(ValueError, match="2 labels for 1 images"):
        grid([small], ["a", "b"])
