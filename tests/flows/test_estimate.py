"""What a run will need: reckoned from what is known, and only for what is not stored yet."""

from pathlib import Path

import pytest

from flows.config import PipelineConfig, grid_points
from flows.estimate import Estimate, estimate
from flows.planner import plan
from tasks.artifacts import Store, open_store
from tests.flows.made_runs import demo, fill


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def needs(config: PipelineConfig, store: Store) -> Estimate:
    return estimate(config, plan(config, store))


def test_tokens_come_from_the_best_that_is_known(store: Store, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("word " * 800)
    config = demo(f"corpus.path={text}")
    assert needs(config, store).tokens == 1000
    assert needs(demo(f"corpus.path={text}", "corpus.max_rows=3"), store).tokens == 3 * 64  # rows of 64 tokens at most
    assert needs(demo("corpus.max_rows=3"), store).tokens == 3 * 64
    fill(store, config)
    assert needs(config, store).tokens == 2 * 1000  # counted by both shards of capture
    assert needs(demo(f"corpus.path={text}", "capture.bos=none"), store).tokens == 1000  # by the corpus


def test_bytes_and_flop_follow_the_shapes(store: Store) -> None:
    found = needs(demo("capture.sites=[resid_post.0,resid_post.1]", "train.steps=10", "train.batch_size=512"), store)
    assert found.tokens == 500_000
    assert found.shuffled_bytes == 500_000 * 128 * 2
    assert found.captured_bytes == 2 * found.shuffled_bytes
    assert found.training_flop == 12 * 512 * 10 * 2048 * 128
    weights = 2 * 2048 * 128 * 4
    assert found.trained_bytes == weights + 3 * weights
    assert found.dollars == {"label": 0, "score": 0}


def test_space_is_needed_for_what_is_not_stored(store: Store) -> None:
    found = needs(demo(), store)
    assert None not in (found.captured_bytes, found.archived_bytes, found.shuffled_bytes, found.trained_bytes)
    planned = plan(demo(), store)
    whole = found.still_needed_bytes(planned)
    assert whole == found.captured_bytes + found.archived_bytes + 2 * found.shuffled_bytes + found.trained_bytes  # type: ignore[operator]
    first = next(entry for entry in planned if entry.stage == "capture")
    first.state = "Cached"
    assert found.still_needed_bytes(planned) == whole - found.captured_bytes // 2  # type: ignore[operator]
    fill(store, demo())
    assert found.still_needed_bytes(plan(demo(), store)) == 0


def test_a_sweep_trains_all_points_and_pays_for_none(store: Store) -> None:
    config = demo("train.steps=10", "labeller=claude")
    points = grid_points(config, ["train.n_latents=1024,4096"])
    found = estimate(config, plan(config, store, points=points), points)
    assert found.training_flop == sum(12 * 1024 * 10 * n * 128 for n in (1024, 4096))
    assert found.trained_bytes == 2 * 128 * 4 * (1024 + 4096 + 3 * 4096)
    assert found.dollars == {"label": 0, "score": 0}
    assert all(needs(config, store).dollars.values())
