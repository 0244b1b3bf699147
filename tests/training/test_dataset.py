"""What a photo becomes: crops, borders, masks, prompts, and that every batch can be made again."""

import copy

import pytest
import torch
from kindred_testing import pack


def concept(token="<v1>", kind="dog", sizes=((96, 128),) * 3, **changes):
    """One picture of one flat colour for each size (height, width)."""
    pictures = [torch.full((1, *size, 3), (index + 1) / (len(sizes) + 1)) for index, size in enumerate(sizes)]
    return pack("training.data.concept").make_concept(pictures, token, kind, **changes)


def dataset(*concepts, **changes):
    settings = {"resolution": 128, "batch_size": 2, "steps": 300, "seed": 3, **changes}
    return pack("training.data.dataset").Dataset(list(concepts) or [concept()], **settings)


def shrink(pixels):
    """Stands for a VAE where only the order and the count of calls matter: every eighth pixel."""
    return pixels.movedim(-1, 1)[:, :, ::8, ::8]


def planned(data, steps=None):
    return [row for index in range(steps or data.steps) for row in data.plan(index)]


@pytest.mark.parametrize("crop", ["square", "buckets"])
def test_scales_prefixes_and_masks_follow_custom_diffusion(crop):
    data = dataset(crop=crop)
    rows = planned(data)
    canvas = {"square": (128, 128), "buckets": (112, 144)}[crop]
    small = sum(view.size <= canvas for view, _ in rows) / len(rows)
    assert 0.58 < small < 0.74  # p = 0.66, 600 draws
    for view, prompt in rows:
        assert view.canvas == canvas
        scale = view.size[0] / canvas[0]
        assert abs(view.size[1] / canvas[1] - scale) < 0.01, "the aspect ratio stays"
        assert 0.32 < scale < 1.4 and (scale <= 1 or scale > 1.18)
        prefix = prompt.removesuffix("a photo of a <v1> dog")
        if abs(scale - 0.6) > 0.01:
            assert prefix in ({"a far away ", "very small "} if scale < 0.6 else {"zoomed in ", "close up "} if scale > 1 else {""})
        mask = data.mask(view)[0]
        assert mask.shape == (canvas[0] // 8, canvas[1] // 8)
        if scale >= 1:
            assert mask.all()
            continue
        # Every open cell lies inside the pasted picture with a cell to spare, and something is open.
        cells = mask.nonzero()
        assert len(cells)
        if min(view.size) >= 40:
            for axis, start in enumerate((view.top, view.left)):
                assert cells[:, axis].min() * 8 > start and (cells[:, axis].max() + 2) * 8 <= start + view.size[axis]
    assert {view.flip for view, _ in rows} == {True, False}


@pytest.mark.parametrize("crop", ["square", "buckets"])
def test_a_small_picture_is_pasted_on_grey_and_a_large_one_cropped(crop):
    data = dataset(concept(sizes=((96, 128), (200, 100), (700, 500))), crop=crop)
    for view in data.views[:80]:
        pixels = data.pixels(view)
        assert pixels.shape == (*view.canvas, 3)
        value = (0.25, 0.5, 0.75)[view.image]
        place = (slice(view.top, view.top + view.size[0]), slice(view.left, view.left + view.size[1])) if view.size <= view.canvas else ...
        assert torch.allclose(pixels[place], torch.full_like(pixels[place], value), atol=2e-3)
        if view.size <= view.canvas:
            pixels[place] = 0.5
            assert torch.equal(pixels, torch.full_like(pixels, 0.5))


def test_a_large_photo_is_shown_as_its_plain_resize():
    """Photos are brought down in two antialiased steps; the difference to one is below what eyes and the VAE see."""
    torch.manual_seed(0)
    rough = torch.nn.functional.interpolate(torch.rand(1, 3, 60, 60), size=(900, 900), mode="bicubic").clamp(0, 1)
    data = dataset(pack("training.data.concept").make_concept([rough.movedim(1, -1)], "<v1>", "dog"), flip=False)
    views = [view for view in data.views if view.size <= view.canvas][:10]
    for view in views:
        once = torch.nn.functional.interpolate(rough, size=view.size, mode="bicubic", antialias=True)[0].movedim(0, -1).clamp(0, 1)
        shown = data.pixels(view)[view.top : view.top + view.size[0], view.left : view.left + view.size[1]]
        assert (shown - once).square().mean().sqrt() < 0.01


def test_every_photo_comes_once_before_any_comes_again_and_concepts_alternate():
    data = dataset(concept(), concept("<v2>", "cat", sizes=((64, 64),) * 2), steps=12)
    rows = [view for view, _ in planned(data)]
    assert [view.concept for view in rows] == [0, 1] * 12
    first = [view.image for view in rows if view.concept == 0]
    assert all(sorted(first[start : start + 3]) == [0, 1, 2] for start in range(0, 12, 3))


@pytest.mark.parametrize("crop", ["square", "buckets"])
def test_repeats_weigh_the_concepts_and_spread_them(crop):
    data = dataset(concept(repeats=3), concept("<v2>", "cat"), batch_size=1, steps=40, crop=crop)
    rows = [view for view, _ in planned(data)]
    assert all(sorted(view.concept for view in rows[start : start + 4]) == [0, 0, 0, 1] for start in range(0, 40, 4))
    second = [view.image for view in rows if view.concept == 1]
    assert all(sorted(second[start : start + 3]) == [0, 1, 2] for start in range(0, 9, 3))


def test_buckets_keep_aspect_ratios_and_the_area():
    buckets = pack("training.data.buckets")
    for resolution, scale in ((512, 8), (520, 8), (1024, 16), (96, 8), (1024, 32)):
        sizes = buckets.bucket_sizes(resolution, scale)
        assert len(set(sizes)) == len(sizes) and {(width, height) for height, width in sizes} == set(sizes)
        assert all(height * width <= resolution**2 and height % scale == width % scale == 0 for height, width in sizes)
        for height, width in ((600, 600), (3000, 4000), (4000, 3000), (1080, 1920), (500, 900)):
            bucket = buckets.nearest_bucket(height, width, sizes)
            kept = min(height / width * bucket[1] / bucket[0], width / height * bucket[0] / bucket[1])
            assert kept > (0.85 if resolution >= 256 else 0.9), (resolution, height, width, bucket)
            assert height != width or bucket[0] == bucket[1] == resolution // 64 * 64 or resolution < 256
    assert {(1024, 1024), (832, 1216), (1152, 896)} <= set(buckets.bucket_sizes(1024))  # SDXL's own


def test_a_batch_holds_one_bucket_and_photos_come_equally_often():
    """Five photos in three buckets, one of them alone in its own; a second concept; prior images of yet other shapes."""
    first = concept(sizes=((96, 128), (96, 128), (96, 128), (128, 96), (100, 100)), prior_images=[torch.rand(2, 64, 64, 3), torch.rand(1, 64, 128, 3)])
    second = concept("<v2>", "cat", sizes=((128, 96), (90, 160)))
    data = dataset(first, second, crop="buckets", batch_size=2, steps=400)
    shown = {0: [], 1: []}
    for index in range(400):
        rows = [view for view, _ in data.plan(index)]
        assert len({view.canvas for view in rows}) == 1 and len({view.concept for view in rows}) == 1
        assert [view.prior for view in rows] == ([False, False, True, True] if rows[0].concept == 0 else [False, False])
        shown[rows[0].concept] += [view.image for view in rows if not view.prior]
        if rows[0].image in (0, 1, 2) and rows[0].concept == 0:
            assert rows[0].image != rows[1].image, "others of the bucket before the same again"
    assert len(shown[0]) == len(shown[1]) == 400
    for images, count in ((shown[0], 5), (shown[1], 2)):
        assert all(abs(images.count(image) / len(images) - 1 / count) < 0.04 for image in range(count))
    lead = shown[0][::2]
    assert all(sorted(lead[start : start + 5]) == [0, 1, 2, 3, 4] for start in range(0, 200, 5))


@pytest.mark.parametrize("crop", ["square", "buckets"])
def test_batches_do_not_depend_on_how_many_there_are(crop):
    """What a resumed or a longer run sees at batch 40 is what the shorter one saw."""
    assert dataset(steps=50, crop=crop).plan(40) == dataset(steps=300, crop=crop).plan(40)
    assert dataset(seed=4, crop=crop).plan(0) != dataset(seed=3, crop=crop).plan(0)


def test_without_augmentation_each_view_is_encoded_once():
    data = dataset(augment=False, steps=100)
    calls = []
    data.encode(lambda pixels: (calls.append(len(pixels)), shrink(pixels))[1])
    assert calls == [1] * 6  # three photos, each as it is and mirrored
    batch = data.batch(99)
    assert batch.latents.shape == (2, 3, 16, 16) and batch.masks.shape == (2, 1, 16, 16) and batch.masks.all()
    assert batch.concepts == [0, 0] and not batch.prior.any()
    for row, (view, _) in enumerate(data.plan(99)):
        assert torch.equal(batch.latents[row], shrink(data.pixels(view)[None])[0])


@pytest.mark.parametrize("crop", ["square", "buckets"])
def test_what_is_held_never_changes_a_batch(crop, monkeypatch):
    """The real VAE: encoded ahead, on demand with little held, from the middle on, and again: the very same bits."""
    from kindred_testing.models import sd15

    vae = sd15()[2]
    calls = []

    def encode(pixels):
        calls.append(1)
        with torch.inference_mode():
            return vae.encode(pixels)

    def make():
        first = concept(sizes=((96, 128), (128, 96), (80, 80)), prior_images=[torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(1))])
        return dataset(first, concept("<v2>", "cat"), resolution=64, steps=6, crop=crop)

    ahead = make()
    ahead.encode(encode)
    assert len(calls) == len(ahead.views) and all(ahead.ready(index) for index in range(6))
    expected = [ahead.batch(index) for index in range(6)]
    assert len(calls) == len(ahead.views)
    assert not expected[0].latents.is_inference()

    monkeypatch.setattr(pack("training.data.dataset"), "HELD_PIXELS", 3 * 64**2)
    little = make()
    little.encode(encode)
    assert not little.ready(5) and len(little._encoded) <= 4
    resumed = make()
    resumed.encode(encode, start=4)
    for data, indices in ((little, (0, 1, 2, 3, 4, 5, 1)), (resumed, (4, 5, 0))):
        for index in indices:
            batch = data.batch(index)
            assert len(data._encoded) <= 4
            assert torch.equal(batch.latents, expected[index].latents) and torch.equal(batch.masks, expected[index].masks)
            assert (batch.prompts, batch.concepts, batch.prior.tolist()) == (expected[index].prompts, expected[index].concepts, expected[index].prior.tolist())


def test_a_long_run_is_laid_out_as_it_goes():
    data = dataset(steps=100_000, batch_size=4, augment=False)
    data.encode(shrink)
    assert len(data._encoded) == 6 and data.batch(99_999).latents.shape == (4, 3, 16, 16)


def test_rows_keep_their_order_so_that_processes_can_share_a_batch():
    """Images first, then prior images: rows rank::world hold as much of each for every rank."""
    data = dataset(concept(prior_images=[torch.rand(2, 64, 64, 3)]), batch_size=4)
    data.encode(shrink)
    prior = data.batch(0).prior
    assert prior.tolist() == [False] * 4 + [True] * 4
    assert prior[0::2].sum() == prior[1::2].sum() == 2


def test_caption_dropout_empties_prompts_and_changes_nothing_else():
    plain, dropped, never = (planned(dataset(concept(), caption_dropout=value)) for value in (0.0, 0.3, 1.0))
    assert [view for view, _ in plain] == [view for view, _ in dropped]
    empty = sum(prompt == "" for _, prompt in dropped) / len(dropped)
    assert 0.24 < empty < 0.36 and all(prompt == "" for _, prompt in never)
    assert all(one == other for (_, one), (_, other) in zip(plain, dropped, strict=True) if other)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"caption_dropout": 1.5}, "caption_dropout is 1.5"),
        ({"caption_dropout": float("nan")}, "caption_dropout is nan"),
        ({"crop": "round"}, "crop is 'round'"),
        ({"resolution": 72, "latent_scale": 16}, "multiple of 16"),
    ],
)
def test_settings_that_cannot_be_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        dataset(**changes)


def test_latents_of_video_models_and_of_a_wrong_vae():
    data = dataset(steps=2)
    data.encode(lambda pixels: shrink(pixels)[:, :, None])
    assert data.batch(0).latents.shape == (2, 3, 16, 16)
    for wrong in (lambda pixels: shrink(pixels)[..., ::2], lambda pixels: torch.stack([shrink(pixels)] * 3, dim=2)):
        with pytest.raises(ValueError, match="Connect the VAE that belongs to the model"):
            dataset(steps=2).encode(wrong)


@pytest.mark.parametrize("crop", ["square", "buckets"])
def test_a_subject_mask_goes_where_the_photo_goes(crop):
    mask = torch.zeros(3, 96, 128)
    mask[:, :, :64] = 1  # the left half
    data = dataset(concept(masks=[mask]), augment=False, crop=crop)
    for view in data.views:
        shown = data.mask(view)[0]
        middle = shown.shape[1] // 2
        left, right = shown[:, : middle - 1].mean(), shown[:, middle + 1 :].mean()
        assert (left, right) == ((0, 1) if view.flip else (1, 0))


def test_photos_and_masks_stay_as_they_are():
    given = concept(masks=[torch.rand(3, 96, 128)])
    before = copy.deepcopy(given)
    data = dataset(given, steps=4)
    data.encode(shrink)
    data.batch(3)
    assert all(torch.equal(one, other) for one, other in zip(given.images + given.masks, before.images + before.masks, strict=True))


def test_prior_images_are_plain():
    """As in Custom Diffusion: no scale augmentation, no border in the mask, no prefix, no empty prompt; only the class prompt."""
    data = dataset(concept(prior_images=[torch.rand(3, 64, 96, 3)]), batch_size=4, augment=True, caption_dropout=0.5, steps=12)
    views = [(view, prompt) for index in range(12) for view, prompt in data.plan(index)]
    prior = [(view, prompt) for view, prompt in views if view.prior]
    assert len(prior) == 48 and {prompt for _, prompt in prior} == {"a photo of a dog"}
    assert {view.size for view, _ in prior} == {prior[0][0].canvas} and all(data.mask(view).min() == 1 for view, _ in prior)
    photos = [(view, prompt) for view, prompt in views if not view.prior]
    assert len({view.size for view, _ in photos}) > 5 and "" in {prompt for _, prompt in photos}
