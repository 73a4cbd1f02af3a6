"""What a plot is made of: axes with round values, and curves as one SVG text.

    svg = curves("FVU", steps, {"training": fvu, "held out": validation_fvu})
"""

import html
import math
from collections.abc import Mapping, Sequence

LOG_FROM = 4.0  # an axis whose values span more than this factor is logarithmic
MARGIN = 0.06  # of the axis, beside the outermost points
WIDTH, HEIGHT = 620, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 30, 36
COLOURS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea")


def curves(title: str, across: Sequence[float], up: Mapping[str, Sequence[float | None]], unit: str = "step") -> str:
    """Lines over common places, as an SVG with its own colours (white ground), 620 x 260 pixels.

    `up` gives, by name, one value for each place; None where there is none. Names with no value are left out.
    """
    points_of = {name: [(x, y) for x, y in zip(across, up[name], strict=True) if y is not None] for name in up}
    found = {name: points for name, points in points_of.items() if points}
    x = Axis([place for points in found.values() for place, _ in points], LEFT, WIDTH - RIGHT, linear=True)
    y = Axis([value for points in found.values() for _, value in points], HEIGHT - BOTTOM, TOP)
    parts = [f'<text x="{LEFT}" y="18" font-weight="600">{html.escape(title)}</text>']
    for place, said in y.ticks():
        parts.append(f'<path d="M{LEFT} {place}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{place + 4}" text-anchor="end">{said}</text>')
    for place, said in x.ticks():
        parts.append(f'<text x="{place}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{said}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{html.escape(unit)}</text>')
    for number, (name, points) in enumerate(found.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(f"{x(place)},{y(value)}" for place, value in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        at = WIDTH - RIGHT - 110 * (len(found) - 1 - number)
        parts.append(f'<text x="{at}" y="18" text-anchor="end" fill="{colour}">{html.escape(name)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="#374151"><rect width="100%" height="100%" fill="#fff"/>'
        f'{"".join(parts)}</svg>'
    )


class Axis:
    """From values to places on the page, linear or logarithmic, with some room beside the outermost."""

    def __init__(self, values: Sequence[float], begin: float, end: float, linear: bool = False) -> None:
        low, high = min(values), max(values)
        self._log = not linear and low > 0 and high / low > LOG_FROM
        low, high = self._scaled(low), self._scaled(high)
        room = MARGIN * (high - low) or abs(high) * MARGIN or 1.0
        self._low, self._high = low - room, high + room
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        share = (self._scaled(value) - self._low) / (self._high - self._low)
        return round(self._begin + share * (self._end - self._begin), 2)

    def ticks(self) -> list[tuple[float, str]]:
        """Place and text of round values inside the axis."""
        low, high = (10**end if self._log else end for end in (self._low, self._high))
        if self._log:
            decades = range(math.floor(self._low), math.ceil(self._high) + 1)
            found = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
        else:
            step = _round_step((high - low) / 5)
            found = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
        return [(self(value), f"{value:.6g}") for value in found if low <= value <= high]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self._log else value


def _round_step(rough: float) -> float:
    """The largest of 1, 2, 5 times a power of ten that is at most `rough`, so that there are 5 to 12 ticks."""
    power = 10.0 ** math.floor(math.log10(rough))
    return max(digit * power for digit in (1, 2, 5) if digit * power <= rough * (1 + 1e-9))
