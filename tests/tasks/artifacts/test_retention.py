"""What a retention rule lets go, what it keeps, and that all goes on as if it had been there."""

import datetime

import pytest

from tasks.artifacts.maintenance import collect, find, garbage, inputs_of
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.retention import expired, parse_rules
from tasks.artifacts.store import manifest_path
from tasks.errors import InputError
from tests.tasks.artifacts.toys import FILL, STEPS, FillSpec, StepsSpec, build_fill, build_steps, child, wait_for

NOW = datetime.datetime(2030, 1, 31, tzinfo=datetime.UTC)


def aged(store, artifact, days):
    """The same artifact, made so many days before NOW."""
    started = (NOW - datetime.timedelta(days=days)).isoformat()
    made = artifact.manifest.made | {"started": started, "seconds": 0}
    manifest = artifact.manifest.model_copy(update={"made": made})
    store.files.write(manifest_path(manifest.stage, manifest.key), manifest.to_json().encode())


def test_what_nothing_was_made_from_for_long_is_let_go(store):
    old, recent = build_fill(store, seed=1), build_fill(store, seed=2)
    aged(store, old, 40)
    aged(store, recent, 20)
    [entry] = expired(store, {"fill": 30}, now=NOW)
    assert entry.path == f"fill/{old.key}/attempts/{old.manifest.attempt}"
    assert "last used 40 days ago" in entry.why
    assert not expired(store, {"steps": 30}, now=NOW)
    assert not expired(store, {}, now=NOW)


def test_what_led_to_something_recent_stays(store):
    old = build_fill(store)
    later = STEPS.build(store, StepsSpec(), source=old).artifact
    aged(store, old, 40)
    aged(store, later, 20)
    assert not expired(store, {"fill": 30, "steps": 30}, now=NOW)
    aged(store, later, 35)
    entries = expired(store, {"fill": 30, "steps": 30}, now=NOW)
    assert [entry.why.split()[2] for entry in entries] == ["35", "35"]


def test_what_a_stage_under_way_stands_on_stays(store, tmp_path):
    old, other = build_fill(store), build_fill(store, seed=2)
    for artifact in (old, other):
        aged(store, artifact, 40)
    process = child(build_steps, store.url, str(tmp_path / "witness"), 1)
    wait_for(tmp_path / "witness.stopped", process)
    [entry] = expired(store, {"fill": 30}, now=NOW)
    assert other.manifest.attempt in entry.path
    process.kill()
    process.join()
    assert len(expired(store, {"fill": 30}, now=NOW)) == 2


def test_let_go_it_is_still_named_and_made_again_with_what_follows_cached(store):
    old = build_fill(store)
    later = STEPS.build(store, StepsSpec(), source=old).artifact
    for artifact in (old, later):
        aged(store, artifact, 40)
    collect(store, expired(store, {"fill": 30}, now=NOW))
    assert store.manifest("fill", old.key) is None
    assert [name for name in store.files.names("fill") if not name.endswith(".json")] == []
    [named] = inputs_of(store, later.manifest)["source"]
    assert isinstance(named, Manifest) and named.digest == old.digest
    assert not garbage(store)
    again = build_fill(store)
    assert again.digest == old.digest
    assert STEPS.build(store, StepsSpec(), source=again).cached
    assert find(store, "steps").key == later.key


def test_nothing_is_let_go_beside_a_manifest_that_cannot_be_read(store):
    old, torn = build_fill(store, seed=1), build_fill(store, seed=2)
    aged(store, old, 40)
    store.files.write(manifest_path("fill", torn.key), b"{")
    assert not expired(store, {"fill": 30}, now=NOW)
    store.files.remove(manifest_path("fill", torn.key))
    assert expired(store, {"fill": 30}, now=NOW)


def test_an_older_time_of_an_unknown_form_counts_as_now(store):
    old = build_fill(store)
    manifest = old.manifest.model_copy(update={"made": {}})
    store.files.write(manifest_path("fill", old.key), manifest.to_json().encode())
    assert not expired(store, {"fill": 1})
    assert FILL.build(store, FillSpec()).cached


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("archiv=30", "names no stage"),
        ("archive", "no number of days"),
        ("archive=0.5", "at least 1 day"),
        ("archive=-3", "no number of days"),
        ("archive=nan", "no number of days"),
    ],
)
def test_rules_that_are_none_are_told(text, said):
    with pytest.raises(InputError, match=said):
        parse_rules([text], ["archive", "train"])


def test_rules(store):
    assert parse_rules(["archive=30", "train=1.5"], ["archive", "train"]) == {"archive": 30.0, "train": 1.5}
