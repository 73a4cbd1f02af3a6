"""The store's format: marked at the first commit, refused when newer, brought up to date when older."""

import json

import pytest

from tasks.artifacts import migration, open_store
from tasks.artifacts.format import FORMAT, MARK, format_of, write_format
from tasks.artifacts.migration import migrate
from tasks.artifacts.store import Store, attempt_folder
from tasks.errors import StoreError
from tests.tasks.artifacts.toys import FILL, FillSpec, build_fill


def made_before_formats(store):
    """A store as it was when nothing said its format, with an attempt that has no manifest of its own."""
    artifact = build_fill(store)
    store.files.remove(MARK)
    own = f"{attempt_folder('fill', artifact.key, artifact.manifest.attempt)}.json"
    store.files.remove(own)
    return artifact, own


def test_a_new_store_is_marked(store):
    build_fill(store)
    assert json.loads(store.files.read(MARK)) == {"format": FORMAT}
    assert store.stages() == ["fill"]
    assert list(migrate(store)) == []


def test_a_store_of_before_is_read_written_and_migrated(store):
    artifact, own = made_before_formats(store)
    assert format_of(store.files) == 0
    assert FILL.build(store, FillSpec()).cached
    build_fill(store, seed=5)
    assert format_of(store.files) == 0, "what was there before has not been looked at"
    assert list(migrate(store)) == [1]
    assert store.files.read(own) == store.files.read(f"fill/{artifact.key}/manifest.json")
    assert format_of(store.files) == FORMAT


def test_a_migration_that_was_killed_is_run_again(store, monkeypatch):
    _, own = made_before_formats(store)

    def killed(store, step=migration.MIGRATIONS[0]):
        step(store)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setitem(migration.MIGRATIONS, 0, killed)
        with pytest.raises(KeyboardInterrupt):
            list(migrate(store))
    assert format_of(store.files) == 0
    assert list(migrate(store)) == [1]
    assert store.files.read(own) is not None


def test_every_older_format_has_its_step():
    assert sorted(migration.MIGRATIONS) == list(range(FORMAT))


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": "new"}'])
def test_a_mark_that_says_nothing_is_told(store, content):
    build_fill(store)
    store.files.write(MARK, content)
    with pytest.raises(StoreError, match="names no format"):
        Store(store.url).manifest("fill", "0")


def test_a_newer_store_is_refused_also_as_a_base(store, tmp_path):
    build_fill(store)
    write_format(store.files, FORMAT + 1)
    for refused in (Store(store.url), Store(str(tmp_path / "own"), store.url)):
        with pytest.raises(StoreError, match=f"has format {FORMAT + 1}, this saeflow reads formats up to {FORMAT}"):
            build_fill(refused, seed=9)
    assert open_store(store.url).stages() == ["fill"]


def test_ones_own_store_over_a_marked_one_is_marked_too(store, tmp_path):
    build_fill(store)
    own = Store(str(tmp_path / "own"), store.url)
    build_fill(own, seed=3)
    assert format_of(Store(own.url).files) == FORMAT
