"""Stage train: a sparse autoencoder, trained data-parallel by Ray Train inside a job of the Ray Jobs API.

    built = TRAIN.build(store, TrainSpec(n_latents=2048, k=8), runtime, rows=preprocessed)
    sae = sae_core.load_sae(built.artifact.folder())

Files: sae.safetensors and cfg.json (sae_core.load_sae), history.parquet (one row per log_every steps, no wall times).
An interrupted training goes on from its last whole checkpoint and, on a CPU with the same number of workers and
threads, ends with the bits of an uninterrupted one. The path of the work: this module -> tasks/cluster/jobs.py (the
job) -> job.py (its driver) -> rank.py (each worker); they meet in files of progress.py.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from tasks.artifacts import Artifact, Spec, Stage, Summary, Workspace
from tasks.errors import InputError, StageFailed

if TYPE_CHECKING:
    from sae_core import SAEConfig, TrainerConfig
    from tasks.cluster import Cluster
    from tasks.train.progress import Checkpoint

HISTORY_ROWS = 400  # rows of history.parquet where log_every is not given


def _at(position: int, default: Any, description: str, **limits: Any) -> Any:
    return Field(default, description=description, json_schema_extra={"position": position}, **limits)


class TrainSpec(Spec):
    """The autoencoder, its loss and its optimizer."""

    n_latents: int = _at(0, 2048, "Number of latents.", ge=1)
    k: int = _at(1, 16, "Latents kept per token.", ge=1)
    normalization: Literal["none", "standardise_rows", "scale"] = _at(
        2, "none", "none: as they are; standardise_rows: each token to mean 0, deviation 1; scale: E||x|| = sqrt(d)."
    )
    batch_size: int = _at(3, 1024, "Tokens per step, over all workers together.", ge=1)
    epochs: float = _at(4, 1.0, "Passes over the training rows; rounded up to whole steps.", gt=0)
    steps: int | None = _at(5, None, "Number of steps; empty: by epochs.", ge=1)
    lr: float | None = _at(6, None, "Peak learning rate; empty: 0.25 / sqrt(n_latents).", gt=0)
    warmup: float = _at(7, 0.05, "Share of the steps over which the learning rate rises.", ge=0, le=1)
    schedule: Literal["constant", "linear", "cosine"] = _at(
        8, "linear", "constant; linear: to floor over the last decay_share of the steps; cosine: over all of them."
    )
    decay_share: float = _at(9, 0.2, "Share of the steps, at the end, over which linear decays.", gt=0, le=1)
    floor: float = _at(10, 0.0, "Learning rate at the end, as a share of the peak.", ge=0, le=1)
    beta1: float = _at(11, 0.9, "AdamW's decay of the mean gradient.", ge=0, lt=1)
    beta2: float = _at(12, 0.999, "AdamW's decay of the squared gradient.", ge=0, lt=1)
    epsilon: float = _at(13, 6.25e-10, "AdamW's epsilon.", gt=0)
    weight_decay: float = _at(14, 0.0, "AdamW's weight decay.", ge=0)
    auxiliary: float = _at(15, 1 / 32, "Weight of the auxiliary loss, which revives dead latents; 0: none.", ge=0)
    k_auxiliary: int | None = _at(16, None, "Dead latents per token in it; empty: about half of the width.", ge=1)
    dead_after: int | None = _at(
        17, None, "Tokens of silence after which a latent is dead; empty: a twentieth of all, at most 10 million.", ge=1
    )
    log_every: int | None = _at(18, None, "Steps between rows of the history; empty: 400 rows in all.", ge=1)
    seed: int = _at(19, 0, "Seed of the first weights and of the order of the rows.", ge=0)

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.k > self.n_latents:
            raise ValueError(f"k is {self.k}, but n_latents is only {self.n_latents}; choose k at most n_latents")
        return self

    def number_of_steps(self, rows: int) -> int:
        """Steps of the whole training on so many rows."""
        return self.steps if self.steps is not None else -(-int(self.epochs * rows) // self.batch_size)

    def sae_config(self, d_in: int) -> "SAEConfig":
        """The autoencoder for activations of width d_in."""
        from sae_core import SAEConfig

        return SAEConfig(
            d_in=d_in, n_latents=self.n_latents, k=self.k, normalization=self.normalization, seed=self.seed
        )

    def trainer_config(self, rows: int) -> "TrainerConfig":
        """The training on so many rows, with all that was left empty filled in."""
        from sae_core import TrainerConfig

        steps = self.number_of_steps(rows)
        same = ("batch_size", "schedule", "decay_share", "floor", "beta1", "beta2", "epsilon", "weight_decay")
        return TrainerConfig(
            **{name: getattr(self, name) for name in (*same, "auxiliary", "k_auxiliary")},
            steps=steps,
            warmup_steps=round(self.warmup * steps),
            lr=self.lr or 0.25 / self.n_latents**0.5,
            dead_after_rows=self.dead_after or max(1, min(10_000_000, steps * self.batch_size // 20)),
        )

    def steps_between_logs(self, rows: int) -> int:
        """log_every, or what gives about HISTORY_ROWS rows."""
        return self.log_every or max(1, self.number_of_steps(rows) // HISTORY_ROWS)


def train(spec: TrainSpec, out: Workspace, *, rows: Artifact) -> Summary:
    """Trains, or goes on, until a checkpoint of the last step is there; writes the autoencoder and its history."""
    from tasks.artifacts.files import open_files
    from tasks.train.progress import newest

    if spec.batch_size % out.runtime.train_workers:
        raise InputError(
            f"The batch of {spec.batch_size} tokens cannot be shared by {out.runtime.train_workers} training workers; "
            "choose a train.batch_size that is a multiple of runtime.train_workers."
        )
    index = rows.json("index.json")
    if index["train_rows"] == 0:
        raise InputError("There is no training row: preprocess put all of them aside for validation; give more text.")
    steps = spec.number_of_steps(index["train_rows"])
    files = open_files(out.progress.url)
    checkpoint = newest(files)
    if checkpoint is not None and checkpoint.step:
        out.log(f"training goes on from step {checkpoint.step} of {steps}")
    if checkpoint is None or checkpoint.step < steps:
        _run(spec, out, rows, steps)
        checkpoint = newest(files)
    if checkpoint is None or checkpoint.step < steps:
        at = 0 if checkpoint is None else checkpoint.step
        raise StageFailed(f"The training job ended at step {at} of {steps}; run the same command again to go on.")
    out.report(steps, steps, "steps")
    return _write(spec, out, index, rows, checkpoint)


def _run(spec: TrainSpec, out: Workspace, rows: Artifact, steps: int) -> None:
    """Has the job done, or attaches to it, and waits; raises what went wrong."""
    from tasks import cluster
    from tasks.cluster import jobs
    from tasks.train.progress import FAULT, REQUEST, STATUS, Request

    ray = cluster.attach_or_start(out.runtime)
    ray.close_actors()  # the capture's models make room
    what = {"key": out.key, "spec": spec, "store_url": rows.store_url, "rows": rows.manifest}
    request = Request(**what, runtime=out.runtime, **_resources(out, ray))
    out.progress.write(REQUEST, request.model_dump_json().encode())
    out.progress.delete(FAULT)

    def follow() -> None:
        status = out.progress.read_json(STATUS) or {"step": 0}
        out.report(status["step"], steps, "steps")  # always: a run that is to stop learns it here

    job = jobs.Job(
        ray.job_client(),
        name=f"train-{out.key[:16]}",
        entrypoint=[ray.python, "-m", "tasks.train.job", out.progress.url],
        environment=_environment(ray),
    )
    failure = job.run(follow)
    fault = out.progress.read_json(FAULT)
    if fault and fault["kind"] == "input":
        raise InputError(fault["message"])
    if fault or failure:
        said = fault["message"] if fault else failure
        raise StageFailed(f"The training job {job.submission_id} failed: {said} Run the same command again to go on.")


def _environment(ray: "Cluster") -> dict[str, str]:
    """For the job's driver, which hands it to Ray Train's processes."""
    # Ray Train looks at its workers every 2 s otherwise, also at the start and the end of each training.
    found = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25", "RAY_TRAIN_METRICS_ENABLED": "0"}
    # Nobody takes a local node away with notice, and the watcher is one more process to start.
    return found | ({"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"} if ray.embedded else {})


def _resources(out: Workspace, ray: "Cluster") -> dict[str, Any]:
    """Where the job's workers run and what each asks for. A local cluster counts one CPU per worker."""
    workers, device = out.runtime.train_workers, out.runtime.device
    if device == "cuda" and ray.gpus < workers:
        raise InputError(
            f"runtime.device is cuda, but the cluster has {ray.gpus} GPUs for {workers} training workers; "
            "lower runtime.train_workers or set runtime.device to cpu."
        )
    return {
        # Ray tells a job's driver the address of whichever cluster it finds first on the machine (2.60: seen).
        "ray_address": ray.address if ray.embedded else None,
        "gpu": device != "cpu" and ray.gpus >= workers,
        "cpus": 1 if ray.embedded else out.runtime.train_threads,
    }


def _write(
    spec: TrainSpec, out: Workspace, index: dict[str, Any], rows: Artifact, checkpoint: "Checkpoint"
) -> Summary:
    """The artifact's files and its summary."""
    from sae_core import TopKSAE, save_sae

    sae = TopKSAE(spec.sae_config(index["d"]))
    weights = {name.removeprefix("sae."): tensor for name, tensor in checkpoint.tensors.items() if name[:4] == "sae."}
    sae.load_state_dict(weights)
    save_sae(sae, out.path, {"site": index["site"], "rows": rows.digest})
    _write_history(out.path / "history.parquet", checkpoint.history)
    canonical = json.dumps(checkpoint.history, sort_keys=True).encode()
    out.content("history.parquet", hashlib.sha256(canonical).hexdigest())
    last = checkpoint.history[-1] if checkpoint.history else {}
    figures = {name: last[name] for name in ("loss", "fvu", "l0", "dead_share") if name in last}
    tokens = checkpoint.step * spec.batch_size
    what = {"site": index["site"], "n_latents": spec.n_latents, "k": spec.k}
    return what | {"steps": checkpoint.step, "tokens": tokens} | figures


def _write_history(path: Path, history: list[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    names = ("loss", "fvu", "auxiliary", "l0", "dead_share", "lr")
    schema = pyarrow.schema(
        [("step", pyarrow.int64()), ("tokens", pyarrow.int64()), *((name, pyarrow.float64()) for name in names)]
    )
    parquet.write_table(pyarrow.Table.from_pylist(history, schema=schema), path)


TRAIN = Stage("train", version=2, spec=TrainSpec, run=train, progress=True)
