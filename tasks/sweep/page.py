"""The sweep's page: two plots as inline SVG and a table; nothing is loaded and no script runs.

    html = render(axes, points, site="resid_post.1", d_in=128)
"""

from pathlib import Path
from typing import Any

from tasks.plots import Axis
from tasks.sweep import ce_lost, describe

Json = dict[str, Any]
WIDTH, HEIGHT = 620, 360
LEFT, RIGHT, TOP, BOTTOM = 58, 18, 14, 44


def render(axes: list[str], points: list[Json], site: str, d_in: int) -> str:
    """The page as one HTML text, with the report's style."""
    import jinja2
    from markupsafe import Markup

    from tasks.report import FOLDER

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html.jinja").render(
        css=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        axes=axes, site=site, d_in=d_in, rows=[_row(point, axes) for point in points],
        plots=[_plot(points, "fvu"), _plot(points, "ce_lost")],
    )  # fmt: skip


def _row(point: Json, axes: list[str]) -> Json:
    """One line of the table, as texts."""
    dead = f"{100 * point['dead_share']:.3g}%"
    figures = [_measured(point[name]) for name in ("l0", "fvu", "ce_recovered")] + [(dead, "")]
    return {
        "settings": [point["settings"][axis] for axis in axes],
        "figures": figures,
        "fronts": [name for name, on in (("FVU", "fvu"), ("CE", "ce_lost")) if point["on_front"][on]],
    }


def _measured(figure: Json) -> tuple[str, str]:
    return f"{figure['value']:.4g}", f"{figure['low']:.3g} to {figure['high']:.3g}"


def _plot(points: list[Json], kind: str) -> Json:
    """Places of everything in one plot, for the template to draw."""
    values = [_interval(point, kind) for point in points]
    across = Axis([point["l0"]["value"] for point in points], LEFT, WIDTH - RIGHT)
    up = Axis([end for value in values for end in value], HEIGHT - BOTTOM, TOP)
    dots = []
    for point, (middle, low, high) in zip(points, values, strict=True):
        dots.append({
            "x": across(point["l0"]["value"]), "y": up(middle), "low": up(low), "high": up(high),
            "front": point["on_front"][kind], "label": describe(point),
            "title": f"{describe(point)}: L0 {point['l0']['value']:.4g}, {middle:.4g} ({low:.3g} to {high:.3g})",
        })  # fmt: skip
    return {
        "name": "Variance unexplained" if kind == "fvu" else "Loss not recovered",
        "explanation": "FVU" if kind == "fvu" else "1 - CE recovered",
        "across": across.ticks(), "up": up.ticks(), "dots": dots,
        "front": " ".join(f"{dot['x']},{dot['y']}" for dot in dots if dot["front"]),
        "width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM, "top": TOP,
    }  # fmt: skip


def _interval(point: Json, kind: str) -> tuple[float, float, float]:
    """Value, low and high end of what is drawn upwards."""
    if kind == "fvu":
        return point["fvu"]["value"], point["fvu"]["low"], point["fvu"]["high"]
    return ce_lost(point), 1.0 - point["ce_recovered"]["high"], 1.0 - point["ce_recovered"]["low"]
