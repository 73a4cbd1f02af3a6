"""Sweep: the autoencoders of a grid beside each other, with the Pareto fronts of sparsity against what is lost.

    SWEEP.build(store, SweepSpec(), saes=[...], metrics=[...])         one of each for every point, in the same order

Files: sweep.html (an offline page: two plots and a table) and points.json:

    {"axes": ["k"], "points": [{"settings": {"k": 8}, "sae": digest, "fvu": {"value", "low", "high"}, "l0": ...,
                                "ce_recovered": ..., "dead_share": 0.01, "on_front": {"fvu": true, "ce_lost": true}}]}

The axes are the settings of `train` in which the points differ.
"""

import json
from collections.abc import Sequence
from typing import Any

from tasks.artifacts import Artifact, Spec, Stage, Summary, Workspace

MEASURED = ("fvu", "l0", "ce_recovered", "dead_share")
UNSET = "auto"  # a setting that one point gives and another leaves to its default


class SweepSpec(Spec):
    """Nothing to choose: what is compared is what was trained."""


def sweep(spec: SweepSpec, out: Workspace, *, saes: list[Artifact], metrics: list[Artifact]) -> Summary:
    """Writes points.json and sweep.html."""
    from tasks.report.text import sites
    from tasks.sweep.page import render

    axes, points = _points(saes, metrics)
    (out.path / "points.json").write_text(json.dumps({"axes": axes, "points": points}, sort_keys=True, indent=1) + "\n")
    first = saes[0].json("cfg.json")
    html = render(axes, points, site=sites(first), d_in=first["sae"]["d_in"])
    (out.path / "sweep.html").write_text(html, encoding="utf-8", newline="\n")
    best = min(points, key=lambda point: float(point["fvu"]["value"]))
    front = sum(point["on_front"]["fvu"] for point in points)
    return {"points": len(points), "on_front": front, "lowest_fvu": best["fvu"]["value"], "at": describe(best)}


SWEEP = Stage("sweep", version=1, spec=SweepSpec, run=sweep)


def describe(point: dict[str, Any]) -> str:
    """A point by its settings: `k=8 lr=0.004`."""
    return " ".join(f"{name}={value}" for name, value in point["settings"].items()) or "the only point"


def pareto_front(costs: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other beats: none is at most as costly in both and less in one."""
    return [
        not any(a <= x and b <= y and (a, b) != (x, y) for a, b in costs)
        for x, y in costs
    ]  # fmt: skip


def _points(saes: list[Artifact], metrics: list[Artifact]) -> tuple[list[str], list[dict[str, Any]]]:
    """What varies, and one entry per autoencoder, sparsest first."""
    specs = [sae.manifest.spec for sae in saes]
    names = sorted({name for spec in specs for name in spec})
    axes = [name for name in names if len({json.dumps(spec.get(name)) for spec in specs}) > 1]
    points = []
    for sae, spec, measured in zip(saes, specs, metrics, strict=True):
        figures = measured.json("metrics.json")
        settings = {name: spec.get(name, UNSET) for name in axes}
        points.append({"settings": settings, "sae": sae.digest, **{name: figures[name] for name in MEASURED}})
    for name, lost in (("fvu", [one["fvu"]["value"] for one in points]), ("ce_lost", list(map(ce_lost, points)))):
        costs = list(zip([one["l0"]["value"] for one in points], lost, strict=True))
        for one, on_front in zip(points, pareto_front(costs), strict=True):
            one.setdefault("on_front", {})[name] = on_front
    return axes, sorted(points, key=lambda point: (point["l0"]["value"], point["fvu"]["value"]))


def ce_lost(point: dict[str, Any]) -> float:
    """1 - CE recovered, also called fidelity: 0 where the autoencoder costs the model nothing."""
    return 1.0 - float(point["ce_recovered"]["value"])
