"""What cannot end well is refused before anything starts; what can is not."""

import socket
from pathlib import Path

import pytest

from flows.planner import plan
from flows.preflight import check, judge
from tasks.artifacts import Store, open_store
from tasks.artifacts.files import LocalFiles
from tasks.artifacts.store import manifest_path
from tasks.errors import ArtifactError, ClusterError, InputError, StoreError
from tests.flows.made_runs import demo, fill

PAID = ("labeller=claude",)
CAPPED = (*PAID, "runtime.budget_dollars=0.01")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def test_the_last_layer_is_taken_and_the_one_after_it_refused(store: Store) -> None:
    check(demo("capture.sites=[resid_post.0,resid_post.2]"), store)
    with pytest.raises(InputError, match=r"'resid_post\.3', but the model has 3 layers, 0 to 2"):
        check(demo("capture.sites=[resid_post.0,resid_post.3]"), store)


def test_a_model_that_reads_no_chats_is_refused_before_the_corpus_is_made(store: Store) -> None:
    with pytest.raises(InputError, match=r"corpus\.unit is 'chat', but the demo's own model has no chat template"):
        check(demo("corpus.unit=chat"), store)


def test_a_disk_without_room_for_what_is_to_do_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalFiles, "free_bytes", lambda self: 200_000_000)
    with pytest.raises(StoreError, match=r"0\.2 GB free, .* need about 0\.5 GB"):
        check(demo(), store)
    check(demo("corpus.max_rows=500"), store)
    check(demo(), store, only="corpus")
    monkeypatch.setattr(LocalFiles, "free_bytes", lambda self: 600_000_000)
    check(demo(), store)
    with pytest.raises(StoreError, match=r"train\.n_latents"):
        check(demo("train.n_latents=200000"), store)
    fill(store, demo())
    monkeypatch.setattr(LocalFiles, "free_bytes", lambda self: 0)
    check(demo(), store)
    check(demo(), store, frozenset({"label"}))


def test_the_budget_holds_for_what_is_to_do(store: Store) -> None:
    with pytest.raises(InputError, match=r"label may cost .*runtime\.budget_dollars is 0\.01"):
        check(demo(*CAPPED), store)
    check(demo(*CAPPED), store, only="corpus")
    fill(store, demo(*CAPPED))
    check(demo(*CAPPED), store)
    check(demo(*CAPPED), store, only="score")
    for force in ("label", "score"):
        with pytest.raises(InputError, match=f"{force} may cost"):
            check(demo(*CAPPED), store, frozenset({force}), only=force)


def test_the_key_is_asked_for_where_a_forced_stage_pays(store: Store) -> None:
    config = demo(*PAID, "runtime.budget_dollars=1000")
    fill(store, config)
    check(config, store)
    with pytest.raises(InputError, match="ANTHROPIC_API_KEY"):
        check(config, store, frozenset({"label"}))


def test_force_is_the_remedy_that_the_error_names(store: Store) -> None:
    made = fill(store, demo())
    store.files.write(manifest_path("corpus", made["corpus"].key), b"torn")
    with pytest.raises(ArtifactError, match="--force"):
        check(demo(), store)
    check(demo(), store, frozenset({"corpus"}))
    with pytest.raises(InputError, match="model is to be built alone, so corpus, train cannot be made again"):
        check(demo(), store, frozenset({"corpus", "train", "model"}), only="model")


def test_a_stage_alone_needs_earlier_artifacts(store: Store) -> None:
    with pytest.raises(InputError, match=r"train needs the artifact of model, .*--only model"):
        check(demo(), store, only="train")
    fill(store, demo())
    assert [entry.stage for entry in check(demo(), store, only="capture")] == ["model", "corpus", "capture", "capture"]
    check(demo("evaluate.seed=1"), store, only="evaluate")
    with pytest.raises(InputError, match="evaluate needs the artifact of train"):
        check(demo("train.k=3"), store, only="evaluate")


def test_a_text_of_no_byte_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(InputError, match="holds not one byte"):
        check(demo(f"corpus.path={tmp_path / 'text.txt'}"), store)
    (tmp_path / "more.txt").write_text("Words.")
    check(demo(f"corpus.path={tmp_path}"), store)


@pytest.mark.parametrize("variable", ["SAEFLOW_CACHE", "SAEFLOW_SCRATCH"])
def test_folders_that_cannot_be_written_are_told(store: Store, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "/etc/passwd/x")
    with pytest.raises(InputError, match=f"{variable} is /etc/passwd/x, .*/etc/passwd is no folder"):
        check(demo(), store)


def test_a_cluster_that_does_not_answer_is_told_where_one_is_needed(store: Store) -> None:
    with socket.socket() as unheard:  # bound, but nobody listens
        unheard.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{unheard.getsockname()[1]}"
        config = demo(f"runtime.ray_address={place}")
        with pytest.raises(ClusterError, match=f"runtime.ray_address '{place}'"):
            check(config, store)
        check(config, store, only="corpus")
        judge(config, store, plan(config, store))  # asks no service
        with socket.create_server(("127.0.0.1", 0)) as heard:
            at = f"127.0.0.1:{heard.getsockname()[1]}"
            check(demo(f"runtime.ray_address={at}"), store)
            with pytest.raises(ClusterError, match=f"runtime.ray_dashboard 'http://{place}/x'"):
                check(demo(f"runtime.ray_address={at}", f"runtime.ray_dashboard=http://{place}/x"), store)
        fill(store, config)
        check(config, store)


def test_a_check_makes_no_store(store: Store) -> None:
    check(demo(), store)
    assert not store.files.exists()
