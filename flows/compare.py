"""`saeflow diff A B`: how two results differ, stage by stage back to the text: what was set, and what came out.

    for stage in compare(store, a.manifest, b.manifest): print(stage.stage, stage.settings, stage.figures)
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from tasks.artifacts import Manifest, Store

Pair = tuple[Any, Any]  # of the first and of the second; None: it has none


class Difference(NamedTuple):
    """One stage of two results: the settings and figures in which they differ, by name."""

    stage: str
    settings: dict[str, Pair]
    figures: dict[str, Pair]
    same: bool  # whether it is the same artifact, or one with the same content


def compare(store: Store, first: Manifest, second: Manifest) -> Iterator[Difference]:
    """One entry per stage that either was made from, from the text on; of shards the first."""
    one, other = _lineage(store, first), _lineage(store, second)
    for stage in one | other:
        a, b = one.get(stage), other.get(stage)
        yield Difference(
            stage,
            settings=_differing(_settings(a), _settings(b)),
            figures=_differing(a.summary if a else {}, b.summary if b else {}),
            same=a is not None and b is not None and a.digest == b.digest,
        )


def _lineage(store: Store, manifest: Manifest) -> dict[str, Manifest]:
    """All that an artifact was made from, by stage, the text first and itself last."""
    found: dict[str, Manifest] = {}

    def visit(now: Manifest) -> None:
        for value in now.inputs.values():
            references = value if isinstance(value, list) else [value]
            if references and references[0].stage not in found:
                earlier = store.attempt(references[0])
                if earlier is not None:
                    visit(earlier)
        found[now.stage] = now

    visit(manifest)
    return found


def _settings(manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {}
    return {"version": manifest.version} | _flat(manifest.spec, "") | _flat(manifest.outside or {}, "")


def _flat(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _differing(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Pair]:
    pairs = {name: (first.get(name), second.get(name)) for name in first | second}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
