"""Every kind of method runs without `-m exhaustive`."""

from __future__ import annotations

from representatives import ON_CLASSES, crossed, each, kind_of, representatives


def run(cases) -> list[tuple[object, ...]]:
    return [case.values for case in cases if not case.marks]


def test_each_kind_has_one_representative() -> None:
    names = representatives()
    assert {kind_of(name) for name in names} == {kind_of(name) for name in ON_CLASSES}
    assert len({kind_of(name) for name in names}) == len(names) < len(ON_CLASSES)


def test_cases_of_others_are_marked_and_kept() -> None:
    assert [case.values for case in each()] == [(name,) for name in ON_CLASSES]
    assert run(each()) == [(name,) for name in representatives()]
    assert kind_of("grad-cam") == kind_of("layer-cam") != kind_of("eigen-cam")
    pairs = [(name, layer) for name in ("grad-cam", "layer-cam", "eigen-cam") for layer in "ab"]
    assert run(each(pairs)) == [pair for pair in pairs if pair[0] != "layer-cam"]
    assert run(each(pairs, also=["layer-cam"])) == pairs


def test_values_after_the_first_run_with_few_names() -> None:
    names = ("layer-cam", "grad-cam", "eigen-cam")
    assert [case.values for case in crossed(names, "ab")] == [(name, value) for name in names for value in "ab"]
    expected = [("layer-cam", "a"), ("grad-cam", "a"), ("grad-cam", "b"), ("eigen-cam", "a")]
    assert run(crossed(names, "ab")) == expected
    assert run(crossed(names, [("a", 1), ("b", 2)], whole=())) == [("layer-cam", "a", 1), ("eigen-cam", "a", 1)]
    assert run(crossed(names, "ab", first=names, whole=())) == [(name, "a") for name in names]
