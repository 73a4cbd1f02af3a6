"""The train stage on a real Ray: what it makes, and that no interruption changes a bit of it."""

import json
import os
import re
import signal
from pathlib import Path
from typing import get_args

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from sae_core import Rows, load_sae, make_sae, metrics, read_metadata
from sae_core import config as config_module
from sae_core.rows import input_and_target
from tasks import cluster
from tasks.artifacts import Artifact, Store
from tasks.errors import InputError
from tasks.runtime import Runtime
from tasks.train import TRAIN, TrainSpec
from tasks.train import spec as spec_module
from tasks.train.progress import FAULT, SNAPSHOT, TENSORS
from tasks.train.tables import FIGURES
from tasks.train.validation import ROWS
from tests.tasks.activations import activations

STEPS = 1500
SPEC = TrainSpec(n_latents=64, k=4, batch_size=128, steps=STEPS, log_every=50)
RUNTIME = Runtime(train_workers=2, checkpoint_every_steps=100)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def rows(store) -> Artifact:
    return activations(store)


@pytest.fixture(scope="module")
def undisturbed(store, rows, ray_cluster) -> Artifact:
    return TRAIN.build(store, SPEC, RUNTIME, rows=rows).artifact


def progress_folder(store: Store, artifact: Artifact) -> Path:
    return Path(store.url) / "train" / artifact.key / "progress"


def training_jobs() -> list:
    jobs = cluster.attach_or_start(RUNTIME).job_client().list_jobs()
    return [job for job in jobs if (job.submission_id or "").startswith("train-")]


def is_rank(process: psutil.Process) -> bool:
    try:
        return "RayTrainWorker" in " ".join(process.cmdline())
    except psutil.Error:
        return False


def test_makes_an_autoencoder_that_works_on_held_out_rows(undisturbed, rows):
    sae = load_sae(undisturbed.folder())
    x_BD = Rows([rows.path("validation-00000.safetensors")]).read(0, 300).float()
    assert metrics.fvu(x_BD, sae(x_BD)) < 0.25
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(64))
    assert read_metadata(undisturbed.folder()) == {"site": "resid_post.1", "rows": rows.digest}
    assert undisturbed.summary["steps"] == STEPS
    assert undisturbed.summary["tokens"] == STEPS * 128


def test_history_has_a_row_per_log_point_and_no_times(undisturbed):
    table = pq.read_table(undisturbed.path("history.parquet"))
    assert table.column("step").to_pylist() == list(range(50, STEPS + 1, 50))
    assert table.column_names == [*FIGURES, "validation_fvu", "validation_l0"]
    assert table.column("l0_ema").to_pylist()[-1] == pytest.approx(table.column("l0").to_pylist()[-1], rel=0.05)
    fvu = table.column("fvu").to_pylist()
    assert fvu[-1] < fvu[0] / 2
    lr = table.column("lr").to_pylist()
    assert lr[0] < lr[1] == max(lr) == pytest.approx(0.25 / 8)
    assert lr[-1] < 0.01 * lr[1]
    assert undisturbed.summary["fvu"] == fvu[-1]


def test_every_latent_has_a_row_that_agrees_with_the_history(undisturbed):
    lives = pq.read_table(undisturbed.path("latents.parquet")).to_pydict()
    last = pq.read_table(undisturbed.path("history.parquet")).to_pylist()[-1]
    assert lives["latent"] == list(range(64))
    assert sum(lives["firings"]) <= 4 * STEPS * 128
    assert sum(lives["firings"]) > 3 * STEPS * 128
    assert (sum(lives["deaths"]), sum(lives["revivals"])) == (last["deaths"], last["revivals"])
    assert sum(lives["dead"]) == last["dead_share"] * 64
    columns = (lives[name] for name in ("firings", "first_fired_tokens", "last_fired_tokens"))
    for fired, first, latest in zip(*columns, strict=True):
        assert (fired == 0) == (first is None) == (latest is None)
        assert fired == 0 or 128 <= first <= latest <= STEPS * 128


def test_held_out_rows_are_looked_at_on_the_way(undisturbed, rows):
    history = pq.read_table(undisturbed.path("history.parquet"))
    found = {name: history.column(name).to_pylist() for name in ("step", "validation_fvu", "validation_l0")}
    looked_at = [step for step, value in zip(found["step"], found["validation_fvu"], strict=True) if value is not None]
    assert looked_at == list(range(100, STEPS + 1, 100))
    sae = load_sae(undisturbed.folder())
    held_out = Rows([rows.path(name) for name in rows.names() if name.startswith("validation-")])
    x_BD = held_out.read(0, ROWS).float()
    assert undisturbed.summary["validation_fvu"] == found["validation_fvu"][-1]
    assert found["validation_fvu"][-1] == pytest.approx(metrics.fvu(x_BD, sae(x_BD)), rel=1e-5)
    assert found["validation_l0"][-1] == pytest.approx(metrics.l0(sae.encode(x_BD)), rel=1e-9)


def test_with_other_workers_it_goes_on_along_the_same_curve_and_says_so(undisturbed, store, rows):
    """An average of the weights and a geometric median, so that these go through the stage too."""
    spec = SPEC.model_copy(update={"average_decay": 0.99, "pre_bias_from": "geometric_median"})
    whole = TRAIN.build(store, spec, RUNTIME, rows=rows).artifact

    def interrupt(done: float, _total: float, _unit: str) -> None:
        if done > 150:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TRAIN.build(store, spec, RUNTIME, force=True, on_report=interrupt, rows=rows)
    alone = RUNTIME.model_copy(update={"train_workers": 1, "train_micro_batch": 64})
    again = TRAIN.build(store, spec, alone, force=True, rows=rows).artifact
    assert whole.summary["ran_on"] == "2 x cpu"
    assert re.fullmatch(r"2 x cpu; from step \d+00 1 x cpu, micro-batches of 64", again.summary["ran_on"])
    curves = [pq.read_table(made.path("history.parquet")).to_pydict() for made in (whole, again)]
    assert curves[0]["validation_fvu"][-1] == pytest.approx(curves[1]["validation_fvu"][-1], rel=0.02)
    assert curves[0]["loss"] == pytest.approx(curves[1]["loss"], rel=0.02)
    averaged = load_sae(whole.folder())
    torch.testing.assert_close(averaged.W_dec.norm(dim=1), torch.ones(64))
    x_BD = Rows([rows.path(name) for name in rows.names() if name.startswith("validation-")]).read(0, ROWS).float()
    assert whole.summary["validation_fvu"] == pytest.approx(metrics.fvu(x_BD, averaged(x_BD)), rel=1e-5)


def test_wandb_lies_in_the_cache_and_not_in_the_artifact(undisturbed, store):
    assert undisturbed.names() == ["cfg.json", "history.parquet", "latents.parquet", "sae.safetensors"]
    assert not list(Path(store.url).rglob("*.wandb"))
    assert not [path for path in progress_folder(store, undisturbed).rglob("*") if path.is_file()]


@pytest.mark.parametrize("architecture", ["batch_topk", "relu"])
def test_another_architecture_goes_through_the_stage(store, rows, ray_cluster, architecture):
    spec = TrainSpec(
        n_latents=64, k=4, batch_size=128, steps=200, log_every=50, architecture=architecture, normalization="scale"
    )
    made = TRAIN.build(store, spec, RUNTIME, rows=rows).artifact
    sae = load_sae(made.folder())
    x_BD = Rows([rows.path("validation-00000.safetensors")]).read(0, 300).float()
    assert sae.config.architecture == made.summary["architecture"] == architecture
    assert metrics.fvu(x_BD, sae(x_BD)) < 0.6
    assert ("k" in made.summary) == spec.uses_k
    history = pq.read_table(made.path("history.parquet"))
    assert ("sparsity" in history.column_names) == sae.penalises_sparsity


def test_a_transcoder_goes_through_the_stage_and_is_held_against_its_target(store, ray_cluster):
    """The target is the site, negated and doubled: the skip's to learn, or the latents'."""
    paired = activations(store, target=True)
    spec = TrainSpec(
        n_latents=64, k=4, batch_size=128, steps=300, log_every=50, architecture="transcoder", skip=True,
        normalization="scale",
    )  # fmt: skip
    made = TRAIN.build(store, spec, RUNTIME, rows=paired).artifact
    sae = load_sae(made.folder())
    rows_BD = Rows([paired.path("validation-00000.safetensors")]).read(0, ROWS).float()
    x_BD, target_BD = input_and_target(rows_BD, 16)
    assert metrics.fvu(target_BD, sae(x_BD)) == pytest.approx(made.summary["validation_fvu"], rel=1e-4)
    assert made.summary["validation_fvu"] < 0.05
    named = {"site": "resid_post.1", "target": "mlp_out.2"}
    assert read_metadata(made.folder()) == named | {"rows": paired.digest}
    assert made.summary.items() >= named.items()


def test_rows_without_a_target_are_no_transcoders_and_the_other_way_round(store, rows):
    transcoder = TrainSpec(n_latents=64, k=4, batch_size=128, steps=9, architecture="transcoder")
    with pytest.raises(InputError, match=r"have no target site .* but train\.architecture is transcoder"):
        TRAIN.build(store, transcoder, RUNTIME, rows=rows)
    with pytest.raises(InputError, match=r"have a target site .* but train\.architecture is topk"):
        TRAIN.build(store, SPEC, RUNTIME, rows=activations(store, target=True))


def test_a_worker_killed_midway_changes_no_bit(undisturbed, store, rows):
    killed = []

    def kill_one(done: float, _total: float, _unit: str) -> None:
        if done > 150 and not killed:
            killed.append(next(p.pid for p in psutil.Process().children(recursive=True) if is_rank(p)))
            os.kill(killed[0], signal.SIGKILL)

    again = TRAIN.build(store, SPEC, RUNTIME, force=True, on_report=kill_one, rows=rows).artifact
    assert killed
    assert again.digest == undisturbed.digest


def test_interrupted_with_a_torn_checkpoint_it_goes_on_from_the_one_before(undisturbed, store, rows):
    def interrupt(done: float, _total: float, _unit: str) -> None:
        if done > 250:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TRAIN.build(store, SPEC, RUNTIME, force=True, on_report=interrupt, rows=rows)
    assert all(job.status.is_terminal() for job in training_jobs())
    left = progress_folder(store, undisturbed)
    states = sorted(left.rglob("state.json"), key=lambda path: json.loads(path.read_text())["step"])
    assert states
    newest = states[-1].parent / TENSORS
    newest.write_bytes(newest.read_bytes()[:100])
    snapshot = next(left.rglob(SNAPSHOT))
    snapshot.write_text(snapshot.read_text()[:40])

    said: list[str] = []
    again = TRAIN.build(store, SPEC, RUNTIME, force=True, on_log=said.append, rows=rows).artifact
    assert again.digest == undisturbed.digest
    if len(states) > 1:
        assert any("goes on from step" in line for line in said)


def test_activations_that_are_not_finite_end_it_once_with_one_sentence(store, ray_cluster):
    spoilt = activations(store, spoilt_row=17)
    with pytest.raises(InputError, match="hold values that are not finite"):
        TRAIN.build(store, SPEC, RUNTIME, rows=spoilt)
    assert len([job for job in training_jobs() if job.status == "FAILED"]) == 1
    assert list(Path(store.url).rglob(FAULT))


def test_a_batch_that_the_workers_cannot_share_is_refused_at_once(store, rows):
    with pytest.raises(InputError, match="batch_size is 128, which 3 workers cannot share equally"):
        TRAIN.build(store, SPEC, RUNTIME.model_copy(update={"train_workers": 3}), force=True, rows=rows)


def test_a_gpu_that_is_not_there_is_refused(store, rows, ray_cluster):
    if ray_cluster.gpus:
        pytest.skip("this machine has a GPU")
    other = SPEC.model_copy(update={"seed": 1})
    with pytest.raises(InputError, match="device is cuda, but the cluster has 0 GPUs"):
        TRAIN.build(store, other, RUNTIME.model_copy(update={"device": "cuda"}), rows=rows)


def test_k_larger_than_the_number_of_latents_is_refused():
    with pytest.raises(ValidationError, match="k is 65, but n_latents is only 64"):
        TrainSpec(n_latents=64, k=65)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "relu"}, "sparsity is empty, and its default for relu fits tokens of norm sqrt"),
        ({"architecture": "batch_topk", "sparsity": 1.0}, "sparsity is 1.0, but the architecture batch_topk does not"),
        ({"prefixes": [4, 64]}, "topk does not use it; leave it out, or choose the architecture matryoshka"),
        ({"architecture": "matryoshka", "prefixes": [32, 16, 64]}, "do not ascend to n_latents, 64"),
        ({"architecture": "matryoshka", "prefixes": [16, 32]}, "end with it"),
        ({"architecture": "matryoshka", "prefixes": []}, "end with it"),
        ({"architecture": "gated", "bandwidth": 0.1}, "architecture jumprelu"),
        ({"select_per_rank": True}, "batch_topk or matryoshka"),
        ({"architecture": "gated", "precision": "bf16"}, "choose the architecture topk or batch_topk or matryoshka"),
    ],
)
def test_settings_that_do_not_go_together_are_one_sentence(settings, message):
    with pytest.raises(ValidationError, match=message):
        TrainSpec(n_latents=64, k=4, **settings)


def test_the_architectures_and_their_settings_are_those_of_sae_core():
    assert set(get_args(spec_module.Architecture)) == set(get_args(config_module.Architecture))
    for name, architectures in config_module.CONCERNED.items():
        if name in spec_module.CONCERNED:
            assert set(spec_module.CONCERNED[name]) == set(architectures)
    for name in spec_module.OF_THE_SAE:
        assert config_module.SAEConfig.model_fields[name].default is None
    for architecture in get_args(spec_module.Architecture):
        spec = TrainSpec(n_latents=64, k=4, architecture=architecture, normalization="scale")
        assert (spec.sae_config(8).k > 0) == spec.uses_k
        assert make_sae(spec.sae_config(8)).penalises_sparsity == (spec.trainer_config(100, 8).sparsity > 0)


def test_relu_is_trained_as_anthropic_trained_in_april_2024():
    spec = TrainSpec(n_latents=64, architecture="relu", normalization="scale", steps=1000, warmup=0, lr=5e-5)
    config, sae = spec.trainer_config(rows=10_000, d_in=1600), make_sae(spec.sae_config(1600))
    assert (config.sparsity, config.sparsity_warmup_steps, config.clip_norm) == (5.0, 50, 1.0)
    assert (config.beta1, config.beta2, config.weight_decay) == (0.9, 0.999, 0)
    assert (config.schedule, config.decay_share, config.floor) == ("linear", 0.2, 0)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((64,), 0.1))
    assert not sae.config.subtracts_pre_bias


def test_what_is_left_empty_is_filled_in():
    spec = TrainSpec(n_latents=1024, k=8, batch_size=1000, epochs=2.5, warmup=0.1)
    config = spec.trainer_config(rows=4001, d_in=16)
    assert config.steps == 11  # 10,002 rows in whole steps
    assert config.warmup_steps == 1
    assert config.lr == pytest.approx(0.25 / 32)
    assert config.dead_after_rows == 91
    assert [spec.trainer_config(rows, 16).beta2 for rows in (4001, 400_000, 400_000_000)] == [0.99, 0.99, 0.999]
    assert spec.model_copy(update={"steps": 3000}).trainer_config(1, 16).beta2 == pytest.approx(0.996)
    assert spec.model_copy(update={"beta2": 0.5}).trainer_config(1, 16).beta2 == 0.5
    relu = TrainSpec(n_latents=64, architecture="relu", normalization="scale")
    assert relu.trainer_config(4001, 16).beta2 == 0.999
    assert spec.trainer_config(rows=4_000_000_000, d_in=16).dead_after_rows == 10_000_000
    assert spec.model_copy(update={"steps": 7}).number_of_steps(4001) == 7
    assert spec.steps_between_logs(4001) == 1
    assert spec.steps_between_logs(4_000_000) == 25
