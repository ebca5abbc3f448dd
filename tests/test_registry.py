"""Open axes: what a config may choose by name, and what it may set of it."""

import pytest

from tasks.registry import Registry

SHAPES = Registry("shape")


@SHAPES
def square(data: str, side: int = 1, filled: bool = False) -> str:
    return data


@SHAPES
def circle(data: str, radius: float = 0.5, colour: str = "red") -> str:
    return data + colour


def test_a_registered_function_goes_by_its_own_name():
    assert SHAPES.names() == ["square", "circle"]
    assert SHAPES["circle"]("x", colour="blue") == "xblue"
    assert square("x") == "x"


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("square", {}),
        ("square", {"side": 2, "filled": True}),
        ("circle", {"radius": 1.5}),
        ("circle", {"radius": 2, "colour": ""}),
    ],
)
def test_what_a_signature_allows_passes(name, params):
    SHAPES.check(name, params)


@pytest.mark.parametrize(
    ("name", "params", "says"),
    [
        ("sqare", {}, "unknown shape 'sqare'; known: circle, square"),
        ("square", {"size": 2}, "shape 'square' has no parameter 'size'; its parameters: side, filled"),
        ("square", {"data": "x"}, "has no parameter 'data'"),
        ("square", {"side": 2.0}, "parameter 'side' of shape 'square' takes int, not 2.0"),
        ("square", {"side": True}, "takes int, not True"),
        ("square", {"filled": 1}, "takes bool, not 1"),
        ("circle", {"radius": "2"}, "takes float, not '2'"),
        ("circle", {"radius": True}, "takes float, not True"),
        ("circle", {"colour": 3}, "takes str, not 3"),
    ],
)
def test_what_a_signature_does_not_allow_is_refused_and_says_what_it_does(name, params, says):
    with pytest.raises(ValueError, match=says):
        SHAPES.check(name, params)
