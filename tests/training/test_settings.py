"""Settings are declared once: the node, the recipe and the documentation agree, and half a declaration does not load."""

import dataclasses

import pytest
from kindred_testing import pack, script


@pytest.fixture
def settings():
    return pack("training.settings")


def test_the_two_nodes_offer_what_is_declared(settings):
    """Each setting on one of them, with the defaults, limits and choices that the check knows; at most ten fields on Train Concept, whatever the method."""
    nodes = {node.__name__: node.GET_SCHEMA().inputs for node in pack("nodes").all_nodes()}
    main = {one.id: one for one in nodes["KindredTrain"] if one.id not in ("model", "clip", "vae", "concepts", "options")}
    method = main.pop("method")
    assert tuple(option.key for option in method.options) == tuple(pack("training.methods").METHODS)
    assert 1 + len(main) + 1 + max(len(option.inputs) for option in method.options) <= 10, "one for the method, one for what happens to the seed"
    main |= {one.id: one for option in method.options for one in option.inputs}
    more = {one.id: one for one in nodes["KindredTrainingOptions"]}
    assert not main.keys() & more.keys()
    assert main.keys() | more.keys() == {one.name for one in settings.SETTINGS} - {"method"}
    for one in settings.SETTINGS:
        if one.name == "method":
            continue
        given = {**main, **more}[one.name]
        assert given.tooltip == one.help and (one.name in more) == one.advanced, one.name
        if one.automatic:
            assert given.as_dict()["default"] == "auto" and given.get_io_type() == "STRING,FLOAT,INT"
            continue
        assert given.default == one.default, one.name
        if one.choices:
            assert tuple(given.options) == one.choices
        elif one.type in (int, float):
            assert (given.min, given.max) == (one.least, one.most), one.name


def test_auto_is_a_word_and_0_goes_on_to_mean_it(settings):
    """On the nodes, in recipes and in prompts of earlier versions; files say the word."""
    for given, rate in (("auto", 0), ("", 0), (" Auto ", 0), (0, 0), (0.0, 0), ("0", 0), ("1e-4", 1e-4), ("0.0001", 1e-4), (1e-4, 1e-4)):
        train, _, _ = settings.from_inputs({"learning_rate": given, "resolution": 512.0})
        assert train.learning_rate == rate and train.rates()[0] == (rate or 2e-5), given
        assert type(train.resolution) is int and train.as_written()["learning_rate"] == (str(rate) if rate else "auto")
    for name, given, message in (
        ("learning_rate", "fast", "learning_rate is 'fast'; expected auto, or a number such as 0.0001"),
        ("learning_rate", "1,5", "expected auto"),
        ("learning_rate", "nan", "learning_rate is nan"),
        ("learning_rate", "20", "at most 10"),
        ("resolution", "-8", "at least 64"),
        ("resolution", "512.5", "resolution is 512.5; expected a whole number"),
        ("alpha", True, "expected a number"),
    ):
        with pytest.raises(ValueError, match=message):
            settings.from_inputs({name: given})


def test_the_models_own_resolution_is_known_or_asked_for(settings):
    """auto is never a guess: a family whose models differ in size is refused."""
    from kindred_testing import diffusion_families

    resolved = pack("training.trainer").with_resolution
    for family, side in (("SD15", 512), ("SDXL", 1024), ("Flux", 1024)):
        model = diffusion_families.model(family)
        assert resolved(model, settings.TrainSettings()).resolution == side
        assert resolved(model, settings.TrainSettings(resolution=64)).resolution == 64
    with pytest.raises(ValueError, match=r"resolution is auto, but Kindred does not know.*PixArt.*Type it"):
        resolved(diffusion_families.model("PixArt"), settings.TrainSettings())


def test_a_setting_that_the_method_does_not_use_is_named(settings):
    idle = pack("training.advice").idle
    assert idle(settings.TrainSettings()) == [] and idle(settings.TrainSettings(method="lora", targets="text")) == []
    assert idle(settings.TrainSettings(method="lora", vectors=2)) == ["vectors is 2, but the method 'lora' does not use it."]


def test_the_page_says_what_is_declared():
    build = script("dev/build/settings.py")
    assert build.PAGE.read_text("utf-8") == build.page(pack().__name__), "run dev/build/settings.py"


def test_values_out_of_their_declaration_are_refused_by_name(settings):
    for name, value, message in (
        ("steps", 0, "steps is 0; at least 1 is expected"),
        ("steps", True, "steps is True; expected a whole number"),
        ("rank", 2000, "rank is 2000; at most 1024"),
        ("learning_rate", float("nan"), "learning_rate is nan; expected a number"),
        ("adapter", "GLoRA", "adapter is 'GLoRA'; expected one of 'LoRA'"),
        ("augment", 1, "augment is 1; expected true or false"),
    ):
        with pytest.raises(ValueError, match=message):
            settings.TrainSettings(**{name: value})
    with pytest.raises(TypeError, match="no setting stepz"):
        settings.from_inputs({"stepz": 3})


def test_half_a_declaration_does_not_load(settings):
    declare = pack("training.declare")
    with pytest.raises(TypeError, match="no limits"):
        declare.setting(1.0, "A number.", "main")
    with pytest.raises(TypeError, match="not declared whole"):
        declare.setting(1.0, "A number.", "nowhere", least=0, most=1)
    with pytest.raises(ValueError, match="expected one of"):
        declare.setting("c", "A choice.", "main", choices=("a", "b"))
    with pytest.raises(TypeError, match="automatic, but is not a number"):
        declare.setting("", "A text.", "main", automatic=True)
    plain = dataclasses.make_dataclass("Plain", [("steps", int, 3)])
    with pytest.raises(TypeError, match=r"Plain\.steps is not declared"):
        declare.declared(plain)
    with pytest.raises(RuntimeError, match="new is offered but not implemented"):
        declare.implemented(("old", "new"), {"old": 1}, "a table")
    with pytest.raises(ValueError, match=r"nothing\.py needs `algo`"):
        pack("training.adapters.kinds").AdapterKind("nothing", "Learns nothing.", "", "")


def test_each_adapter_kind_has_its_file_and_rate(settings):
    """A row whose file is missing would be found only by an artist who chooses it."""
    kinds, side = pack("training.adapters.kinds"), pack("training.adapters.side")
    for name, kind in kinds.KINDS.items():
        assert issubclass(kinds.side_class(name), side.Side)
        assert settings.TrainSettings(method="lora", adapter=name).rates()[0] == kind.rate
