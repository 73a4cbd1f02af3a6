"""Stage train: a sparse autoencoder, trained data-parallel by Ray Train inside a job of the Ray Jobs API.

    built = TRAIN.build(store, TrainSpec(n_latents=2048, k=8), runtime, rows=preprocessed)
    sae = sae_core.load_sae(built.artifact.folder())

Files: sae.safetensors and cfg.json (sae_core.load_sae), history.parquet and latents.parquet (tables.py).
An interrupted training goes on from its last whole checkpoint and, on a CPU with the same number of workers and
threads, ends with the bits of an uninterrupted one. The path of the work: this module -> tasks/cluster/jobs.py (the
job) -> job.py (its driver) -> rank.py (each worker); they meet in files of progress.py.
"""

from typing import TYPE_CHECKING, Any

from tasks.artifacts import Artifact, Stage, Summary, Workspace
from tasks.errors import InputError, StageFailed
from tasks.runtime import Runtime
from tasks.train.spec import TrainSpec
from tasks.train.tables import write_history, write_latents

if TYPE_CHECKING:
    from tasks.cluster import Cluster
    from tasks.train.progress import Checkpoint, Layouts

__all__ = ["TRAIN", "TrainSpec", "train", "trainings_at_once"]


def train(spec: TrainSpec, out: Workspace, *, rows: Artifact) -> Summary:
    """Trains, or goes on, until a checkpoint of the last step is there; writes the autoencoder and its history."""
    from tasks.artifacts.files import open_files
    from tasks.train.progress import newest

    problem = out.runtime.cannot_share(spec.batch_size)
    if problem:
        raise InputError(f"{problem}.")
    index = rows.json("index.json")
    if index["train_rows"] == 0:
        raise InputError("There is no training row: preprocess put all of them aside for validation; give more text.")
    if spec.transcodes != ("target" in index):
        has = "a target" if "target" in index else "no target"
        raise InputError(
            f"The rows have {has} site beside their own, but train.architecture is {spec.architecture or 'topk'}: a "
            "transcoder, and nothing else, is trained on a target; set preprocess.target to go with it."
        )
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


def trainings_at_once(runtime: Runtime) -> int:
    """How many trainings the cluster holds at a time, at least 1. Starts or attaches to it."""
    from tasks import cluster

    ray = cluster.attach_or_start(runtime)
    if _on_gpus(runtime, ray):
        return ray.gpus // runtime.train_workers
    return max(1, ray.cpus // (runtime.train_workers * runtime.train_threads))


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
        "gpu": _on_gpus(out.runtime, ray),
        "cpus": 1 if ray.embedded else out.runtime.train_threads,
    }


def _on_gpus(runtime: Runtime, ray: "Cluster") -> bool:
    """Whether each worker of a training gets a GPU."""
    return runtime.device != "cpu" and ray.gpus >= runtime.train_workers


def _write(
    spec: TrainSpec, out: Workspace, index: dict[str, Any], rows: Artifact, checkpoint: "Checkpoint"
) -> Summary:
    """The artifact's files and its summary."""
    from sae_core import make_sae, save_sae
    from sae_core.trainer import load_weights

    sae = make_sae(spec.sae_config(index["d"]))
    load_weights(sae, checkpoint.tensors)
    sites = {"site": index["site"]} | ({"target": index["target"]["site"]} if spec.transcodes else {})
    save_sae(sae, out.path, {**sites, "rows": rows.digest})
    write_history(checkpoint.history, out)
    write_latents(checkpoint, spec.n_latents, spec.trainer_config(index["train_rows"], index["d"]), out)
    last = checkpoint.history[-1] if checkpoint.history else {}
    figures = {name: last[name] for name in ("loss", "fvu", "l0", "dead_share", "validation_fvu") if name in last}
    tokens = checkpoint.step * spec.batch_size
    what = {**sites, "n_latents": spec.n_latents}
    what |= {name: value for name, value in (("architecture", spec.architecture), ("k", sae.config.k)) if value}
    return what | {"steps": checkpoint.step, "tokens": tokens} | figures | {"ran_on": _ran_on(checkpoint.layouts)}


def _ran_on(layouts: "Layouts") -> str:
    """How the training was run, in words: what may change its rounding and nothing else."""
    said: list[str] = []
    for layout in layouts:
        words = f"{layout['workers']} x {layout['device']}"
        words += f", {layout['threads']} threads each" if layout["device"] == "cpu" and layout["threads"] > 1 else ""
        words += f", micro-batches of {layout['micro_batch']}" if layout["micro_batch"] else ""
        said.append(f"from step {layout['from_step']} {words}" if said else words)
    return "; ".join(said)


TRAIN = Stage("train", version=3, spec=TrainSpec, run=train, progress=True)
