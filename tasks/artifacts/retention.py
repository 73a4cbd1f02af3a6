"""Retention: bulky artifacts whose last use is long ago are let go, and made again should anybody want them.

    expired(store, {"archive": 30, "preprocess": 14})          # what saeflow gc --retain archive=30 lists

The last use of an artifact is when it was made, or when anything was last made from it, directly or through others. So
what led to a recent result is kept as a whole, and so is what a stage that is under way stands on. An artifact that is
let go leaves its attempt's own manifest, by which `lineage` and `diff` go on naming it; made again it has the same
digest, and what follows from it stays Cached.
"""

import datetime
import math
import re
from collections.abc import Iterable, Mapping

from tasks.artifacts.maintenance import Garbage, being_read
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import Store, attempt_folder
from tasks.errors import ArtifactError, InputError


def parse_rules(texts: Iterable[str], stages: Iterable[str]) -> dict[str, float]:
    """Days by stage, from texts such as archive=30; InputError for what is none."""
    known, rules = list(stages), dict[str, float]()
    for text in texts:
        stage, _, days = text.partition("=")
        remedy = f"write STAGE=DAYS, at least 1 day, with one of: {', '.join(known)}."
        if stage not in known:
            raise InputError(f"The retention rule {text!r} names no stage; {remedy}")
        if not re.fullmatch(r"\d+(\.\d+)?", days) or float(days) < 1:
            raise InputError(f"The retention rule {text!r} says no number of days; {remedy}")
        rules[stage] = float(days)
    return rules


def expired(store: Store, rules: Mapping[str, float], now: datetime.datetime | None = None) -> list[Garbage]:
    """The artifacts whose last use is longer ago than their stage's days, those of the longest ago first.

    Where any manifest cannot be read there are none: it may have been made from any of them; `garbage` tells which.
    `now`: for tests.
    """
    torn: list[tuple[str, str, ArtifactError]] = []
    now = now or datetime.datetime.now(datetime.UTC)
    current = list(store.manifests(unreadable=lambda *fault: torn.append(fault))) if rules else []
    used: dict[tuple[str, str, str], datetime.datetime] = {}
    ahead = [(_made(manifest), number, [manifest]) for number, manifest in enumerate(current)]
    if rules:
        under_way = [found for found in map(store.attempt, being_read(store)) if found is not None]
        ahead.append((now, len(ahead), under_way))
    for when, _, standing_on in sorted(ahead, reverse=True):  # newest first: most of what it stands on is passed over
        while standing_on:
            manifest = standing_on.pop()
            name = (manifest.stage, manifest.key, manifest.attempt)
            if name not in used:
                used[name] = when
                earlier = map(store.attempt, manifest.references())
                standing_on += [found for found in earlier if found is not None]
    found = []
    for manifest in current:
        name = (manifest.stage, manifest.key, manifest.attempt)
        when, folder = used[name], attempt_folder(*name)
        days = (now - when).total_seconds() / 86400
        if not torn and days > rules.get(manifest.stage, math.inf):
            why = f"last used {days:.0f} days ago, {manifest.size / 1e9:.3g} GB"
            found.append((when, Garbage(folder, why, manifest)))
    return [entry for _, entry in sorted(found, key=lambda pair: (pair[0], pair[1].path))]


def _made(manifest: Manifest) -> datetime.datetime:
    """When an artifact was made; one that does not say counts as made now."""
    try:
        started = datetime.datetime.fromisoformat(str(manifest.made["started"]))
    except (KeyError, ValueError):
        return datetime.datetime.now(datetime.UTC)
    return started + datetime.timedelta(seconds=float(manifest.made.get("seconds", 0)))
