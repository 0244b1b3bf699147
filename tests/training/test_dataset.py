"""What a photo becomes: crops, borders, masks, prompts, and that every step can be made again."""

import torch
from kindred_testing import pack


def concept(**changes):
    pictures = [torch.full((1, 96, 128, 3), value) for value in (0.1, 0.4, 0.9)]
    return pack("training.concept").make_concept(pictures, "<v1>", "dog", **changes)


def dataset(concepts=None, **changes):
    settings = {"resolution": 128, "batch_size": 2, "steps": 300, "seed": 3, **changes}
    return pack("training.dataset").Dataset(concepts or [concept()], **settings)


def test_scales_prefixes_and_masks_follow_custom_diffusion():
    data = dataset()
    views = [(view, prompt) for step in data._steps for view, prompt in step]
    small = sum(view.scale <= 128 for view, _ in views) / len(views)
    assert 0.58 < small < 0.74  # p = 0.66, 600 draws
    for view, prompt in views:
        prefix = prompt.removesuffix("a photo of a <v1> dog")
        expected = {"a far away ", "very small "} if view.scale < 0.6 * 128 else {"zoomed in ", "close up "} if view.scale > 128 else {""}
        assert prefix in expected
        assert 42 <= view.scale < 179 and (view.scale <= 128 or view.scale >= 153)
        mask = data.mask(view, (16, 16))[0]
        if view.scale >= 128:
            assert mask.all()
            continue
        # Every open cell lies inside the pasted picture with a cell to spare, and something is open.
        cells = mask.nonzero()
        assert len(cells)
        if view.scale >= 40:
            for axis, start in enumerate((view.top, view.left)):
                assert cells[:, axis].min() * 8 >= start and (cells[:, axis].max() + 1) * 8 <= start + view.scale
    assert {view.flip for view, _ in views} == {True, False}


def test_a_small_picture_is_pasted_on_grey_and_a_large_one_cropped():
    data = dataset()
    for view in data.views[:60]:
        pixels = data.pixels(view)
        assert pixels.shape == (128, 128, 3)
        value = (0.1, 0.4, 0.9)[view.image]
        inside = pixels if view.scale >= 128 else pixels[view.top : view.top + view.scale, view.left : view.left + view.scale]
        assert torch.allclose(inside, torch.full_like(inside, value), atol=2e-3)
        if view.scale < 128:
            rest = pixels.clone()
            rest[view.top : view.top + view.scale, view.left : view.left + view.scale] = 0.5
            assert torch.equal(rest, torch.full_like(rest, 0.5))


def test_every_photo_comes_once_before_any_comes_again_and_concepts_alternate():
    second = pack("training.concept").make_concept([torch.rand(2, 64, 64, 3)], "<v2>", "cat")
    data = dataset([concept(), second], batch_size=2, steps=12)
    order = [view for step in data._steps for view, _ in step]
    assert [view.concept for view in order] == [0, 1] * 12
    first = [view.image for view in order if view.concept == 0]
    assert all(sorted(first[start : start + 3]) == [0, 1, 2] for start in range(0, 12, 3))


def test_steps_do_not_depend_on_how_many_there_are():
    """What a resumed or a longer run sees at step 40 is what the shorter one saw."""
    assert dataset(steps=50)._steps[40] == dataset(steps=300)._steps[40]
    assert dataset(seed=4)._steps != dataset(seed=3)._steps


def test_without_augmentation_each_view_is_encoded_once():
    data = dataset(augment=False, steps=100)
    calls = []

    def encode(pixels):
        calls.append(len(pixels))
        return pixels.movedim(-1, 1)[:, :, ::8, ::8]

    data.encode(encode)
    assert sum(calls) == 6  # three photos, each as it is and mirrored
    batch = data.batch(99)
    assert batch.latents.shape == (2, 3, 16, 16) and batch.masks.all()
    for row, (view, _) in enumerate(data._steps[99]):
        assert torch.equal(batch.latents[row], encode(data.pixels(view)[None])[0])


def test_a_subject_mask_goes_where_the_photo_goes():
    mask = torch.zeros(3, 96, 128)
    mask[:, :, :64] = 1  # the left half; the square crop keeps columns 16..111
    data = dataset([concept(masks=[mask])], augment=False)
    for view in data.views:
        shown = data.mask(view, (16, 16))[0]
        left, right = shown[:, :7].mean(), shown[:, 9:].mean()
        assert (left, right) == ((0, 1) if view.flip else (1, 0))
