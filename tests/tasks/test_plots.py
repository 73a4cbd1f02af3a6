"""Curves are drawn where their values are, and what has no value is left out."""

import re
from xml.etree import ElementTree

import pytest

from tasks.plots import HEIGHT, WIDTH, curves

SVG = "{http://www.w3.org/2000/svg}"


def lines(svg: str) -> list[list[tuple[float, float]]]:
    found = ElementTree.fromstring(svg).findall(f"{SVG}polyline")
    return [[tuple(map(float, point.split(","))) for point in line.attrib["points"].split()] for line in found]


def test_a_curve_goes_where_its_values_go() -> None:
    up = {"training": [1.0, 0.5, 0.25], "held out": [None, 0.6, None], "none": [None, None, None]}
    svg = curves("Variance <unexplained>", [0, 100, 200], up)
    first, second = lines(svg)
    assert [x for x, _ in first] == sorted(x for x, _ in first)
    assert [y for _, y in first] == sorted(y for _, y in first), "less is further down"
    assert second[0][0] == first[1][0] and first[0][1] < second[0][1] < first[1][1]
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for line in (first, second) for x, y in line)
    texts = [text.text for text in ElementTree.fromstring(svg).findall(f"{SVG}text")]
    assert "Variance <unexplained>" in texts and "held out" in texts and "none" not in texts
    assert not re.search(r"(href|script|url\()", svg), "nothing is loaded"


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [1e-6, 1e6], [-5.0, 5.0]])
def test_any_values_can_be_drawn(values: list[float]) -> None:
    [line] = lines(curves("any", range(len(values)), {"all": values}))
    assert len(line) == len(values)
