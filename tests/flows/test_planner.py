"""The plan says what a run would do and why, and its remedy for a torn manifest is planned as it is carried out."""

import threading
from pathlib import Path

import pytest

from flows.config import PipelineConfig
from flows.dag import STAGES, up_to
from flows.planner import plan
from tasks.artifacts import Manifest, Store, open_store
from tasks.artifacts.store import manifest_path, progress_folder
from tasks.errors import ArtifactError
from tests.flows.made_runs import demo, fill


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def planned(config: PipelineConfig, store: Store, *force: str, only: str | None = None) -> dict[str, tuple[str, str]]:
    """(state, why) of each stage; of a stage with shards, those of its last."""
    return {entry.stage: (entry.state, entry.why) for entry in plan(config, store, frozenset(force), only=only)}


def test_what_is_stored_is_cached_and_nothing_else(store: Store) -> None:
    assert {why for state, why in planned(demo(), store).values() if state == "will run"} == {"not made yet"}
    made = fill(store, demo())
    found = planned(demo(), store)
    assert list(found) == list(STAGES) and {state for state, _ in found.values()} == {"Cached"}
    assert found["train"] == ("Cached", made["train"].key[:12])


def test_shards_are_looked_up_at_once_and_listed_in_order(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 16 must be on their way before the first is answered: one after the other they would wait for ever."""
    config = demo("capture.shards=16")
    fill(store, config)
    look_up, together = Store.manifest, threading.Barrier(16, timeout=60)

    def slow(self: Store, stage: str, key: str) -> Manifest | None:
        if stage == "capture":
            together.wait()
        return look_up(self, stage, key)

    monkeypatch.setattr(Store, "manifest", slow)
    found = [(entry.stage, entry.shard, entry.state) for entry in plan(config, store)]
    shards = [(stage, i, "Cached") for i in range(16) for stage in ("capture", "archive")]
    assert found[2:34] == shards


def test_a_changed_setting_is_named_and_what_follows_depends(store: Store) -> None:
    fill(store, demo())
    found = planned(demo("train.k=16"), store)
    assert found["preprocess"][0] == "Cached"
    assert found["train"] == ("will run", "train.k (8 -> 16) changed")
    assert found["label"] == ("depends", "examples must be made first; Cached if it comes out the same")


def test_a_changed_input_and_a_changed_version_are_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, demo())
    fill(store, demo("corpus.max_rows=10"))  # another corpus, hence other captures
    changed = planned(demo("corpus.max_rows=10", "capture.sites=[resid_post.0]"), store)
    assert changed["capture"][1].startswith("capture.sites (")
    monkeypatch.setattr(STAGES["model"].__class__, "key", lambda self, spec, digests: "0" * 64)
    assert planned(demo(), store)["model"] == ("will run", "its artifact was made with other inputs")


def test_an_edited_file_outside_is_made_again_and_named(store: Store, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time.")
    config = demo(f"corpus.path={text}")
    fill(store, config)
    assert planned(config, store)["corpus"][0] == "Cached"
    text.write_text("Once upon another time.")
    found = planned(config, store)
    assert found["corpus"] == ("will run", "what lies outside the store (an edited file, or another revision) changed")
    assert found["model"][0] == "Cached" and found["capture"][0] == "depends"


def test_saved_progress_is_gone_on_with(store: Store) -> None:
    made = fill(store, demo())
    folder = progress_folder("train", made["train"].key)
    store.files.write(f"{folder}/state.json", b"{}")
    store.files.remove(manifest_path("train", made["train"].key))
    assert planned(demo(), store)["train"] == ("will run", "goes on from its saved progress")


def test_force_is_planned_also_where_the_manifest_is_torn(store: Store) -> None:
    made = fill(store, demo())
    store.files.write(manifest_path("corpus", made["corpus"].key), b'{"schema": 1')
    with pytest.raises(ArtifactError, match="--force"):
        planned(demo(), store)
    found = planned(demo(), store, "corpus")
    assert found["corpus"] == ("will run", "asked for by --force")
    assert found["capture"][0] == "depends" and found["model"][0] == "Cached"
    # for other settings the torn one is only a neighbour, which explains nothing
    assert planned(demo("corpus.max_rows=5"), store)["corpus"] == ("will run", "not made yet")


def test_a_stage_alone_needs_what_it_reads_and_no_more(store: Store) -> None:
    assert up_to(demo(), "corpus") == {"corpus"}
    assert up_to(demo(), "archive") == {"model", "corpus", "capture", "archive"}
    assert up_to(demo(), "score") == set(STAGES) - {"evaluate", "report"}
    assert up_to(demo(), "report") == set(STAGES)
    fill(store, demo())
    found = planned(demo(), store, "train", only="evaluate")  # what is not built is not forced either
    assert set(found) == {"model", "corpus", "capture", "archive", "preprocess", "train", "evaluate"}
    assert {state for state, _ in found.values()} == {"Cached"}
    assert planned(demo(), store, "evaluate", only="evaluate")["evaluate"][0] == "will run"
