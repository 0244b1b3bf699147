"""Settings are declared once: the node, the recipe and the documentation agree, and half a declaration does not load."""

import dataclasses

import pytest
from kindred_testing import pack, script


@pytest.fixture
def settings():
    return pack("training.settings")


def test_the_node_offers_what_is_declared(settings):
    """Defaults, limits and choices on the node are those that the check knows."""
    node = next(node for node in pack("nodes").all_nodes() if node.__name__ == "KindredTrain")
    inputs = {one.id: one for one in node.GET_SCHEMA().inputs}
    method = inputs.pop("method")
    assert tuple(option.key for option in method.options) == tuple(pack("training.methods").METHODS)
    inputs |= {one.id: one for option in method.options for one in option.inputs}
    others = {"model", "clip", "vae", "concepts"}
    assert set(inputs) - others == {one.name for one in settings.SETTINGS} - {"method"}
    for one in settings.SETTINGS:
        if one.name == "method":
            continue
        given = inputs[one.name]
        assert given.default == one.default and given.tooltip == one.help, one.name
        if one.choices:
            assert tuple(given.options) == one.choices
        elif one.type in (int, float):
            assert (given.min, given.max) == (one.least, one.most), one.name


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
