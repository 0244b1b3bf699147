"""Prior images on disk: drawn once, kept by content, whole or not at all."""

import resource

import pytest
import torch
from kindred_testing import pack


@pytest.fixture(scope="module")
def base():
    from kindred_testing.models import sd15

    return sd15()


def settings(**changes):
    values = {"class_prompt": "a photo of a dog", "width": 64, "height": 64, "steps": 1, "batch_size": 2, **changes}
    return pack("training.data.prior").PriorSettings(**values)


def draw(base, folder, count=2, **changes):
    with torch.inference_mode():
        return pack("training.data.prior").prior_images(*base, settings(**changes), count, folder)


def times(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_pictures_are_drawn_once_and_more_can_be_added(base, tmp_path):
    first = draw(base, tmp_path, 3)
    assert [picture.shape for picture in first] == [(1, 64, 64, 3)] * 3
    assert not any(torch.equal(first[0], other) for other in first[1:])
    before = times(tmp_path)
    assert sorted(before) == ["00000.png", "00001.png", "00002.png", "00003.png"]  # whole batches
    again = draw(base, tmp_path, 5)
    assert all(torch.equal(one, other) for one, other in zip(first, again[:3], strict=True))
    assert before.items() <= times(tmp_path).items() and len(again) == 5


def test_missing_and_damaged_pictures_are_drawn_again_just_as_they_were(base, tmp_path):
    first = draw(base, tmp_path, 4)
    content = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "00001.png").write_bytes(content["00001.png"][:200])
    (tmp_path / "00002.png").unlink()
    before = times(tmp_path)
    again = draw(base, tmp_path, 4)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == content
    assert times(tmp_path)["00000.png"] == before["00000.png"]


def test_the_name_tells_everything_that_pictures_depend_on(base):
    """Each change of weights, patches, options, text or settings gives another folder; loading the same file again, and a run in between, the same."""
    from kindred_testing.models import sd15

    prior = pack("training.data.prior")
    model, clip, vae = base

    def name(model=model, clip=clip, vae=vae, **changes):
        return prior.cache_name(model, clip, vae, settings(**changes))

    def patched(strength):
        clone = model.clone()
        key = next(key for key in clone.model.state_dict() if key.endswith("attn2.to_k.weight"))
        clone.add_patches({key: ("diff", (torch.ones_like(clone.model.state_dict()[key]),))}, strength)
        return clone

    def guided(scale):
        clone = model.clone()
        clone.set_model_sampler_cfg_function(lambda args: args["cond"] * scale)
        return clone

    from importlib import import_module

    flow = import_module("comfy_extras.nodes_model_advanced").ModelSamplingDiscrete().patch(model, "v_prediction", False)[0]
    earlier = clip.clone()
    earlier.clip_layer(-2)
    other = sd15(seed=1)
    names = [
        name(),
        name(model=patched(0.5)),
        name(model=patched(0.6)),
        name(model=guided(1.0)),
        name(model=guided(2.0)),
        name(model=flow),
        name(clip=earlier),
        name(model=other[0]),
        name(clip=other[1]),
        name(vae=other[2]),
        name(class_prompt="a photo of a cat"),
        *(name(**change) for change in ({"seed": 1}, {"steps": 2}, {"cfg": 5.0}, {"width": 128}, {"scheduler": "karras"}, {"batch_size": 1})),
    ]
    assert len(set(names)) == len(names)
    assert name(*sd15()) == names[0] == name(model=model.clone(), clip=clip.clone())
    assert name(model=patched(0.5)) == names[1] and name(model=guided(2.0)) == names[4]
    # A patched clone that is loaded at the moment changes the shared module, but not what `model` means.
    management = import_module("comfy.model_management")
    with torch.inference_mode():
        management.load_models_gpu([patched(0.5)])
        assert name() == names[0]
        management.load_models_gpu([model])


def test_a_full_disk_is_said_in_a_sentence_and_leaves_nothing_half_written(base, tmp_path):
    """The real kernel refuses to write more than 5,000 bytes into a file; a picture of noise takes more."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))
    try:
        with pytest.raises(OSError, match=r"cannot be written to .*: File too large\. Free some space"):
            draw(base, tmp_path / "prior", steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list((tmp_path / "prior").iterdir())
    assert len(draw(base, tmp_path / "prior")) == 2


def test_a_folder_that_cannot_be_is_said_before_anything_is_drawn(base, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot be written to .*: Not a directory\."):
        draw(base, tmp_path / "file" / "prior", steps=10**9)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"class_prompt": " "}, "class_prompt is empty"),
        ({"count": 0}, "count is 0"),
        ({"width": 100}, "width is 100"),
        ({"height": 8}, "height is 8"),
        ({"steps": 0}, "steps is 0"),
        ({"cfg": float("nan")}, "cfg is nan"),
    ],
)
def test_what_cannot_be_drawn_is_named(base, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        draw(base, tmp_path, **changes)
