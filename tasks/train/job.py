"""The driver of a training job: reads its request from the progress folder and lets Ray Train do it.

    python -m tasks.train.job <URL of the progress folder>

Ray Train restarts the workers from the last checkpoint when one dies; run again under the same name, the workers find
the checkpoints of the run before. What cannot be mended by trying again is left as one sentence in fault.json.
"""

import sys
from typing import Any

from tasks.artifacts.files import Files, open_files
from tasks.train.progress import FAULT, Request, read_request, repair_snapshot, write_fault

RESTARTS = 2  # of the workers, after one has died
IDLE = {"DatasetsCallback"}  # of Ray Data, from which no rows come
IDLE_ON_ONE_NODE = {"PlacementGroupCleanerCallback"}  # frees what a dead controller held: here the job ends with it


def main(url: str) -> int:
    """Runs the training; 0 when it came to its end."""
    files = open_files(url)
    request = read_request(files)
    repair_snapshot(files, request.key)
    try:
        _fit(url, files, request)
    except Exception as error:  # whatever it was, the person who waits for the job must be told
        if files.read(FAULT) is None:
            write_fault(files, "failure", f"{type(error).__name__}: {error}")
        raise
    return 0 if files.read(FAULT) is None else 1


def _fit(url: str, files: Files, request: Request) -> None:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from tasks.train.rank import train_rank

    class Trainer(TorchTrainer):
        """Without processes of Ray Train that have nothing to do here, but for which the workers would wait."""

        def _create_default_callbacks(self) -> list[Any]:  # not called by a Ray that has none: then they start
            callbacks = super()._create_default_callbacks()
            idle = IDLE if request.ray_address is None else IDLE | IDLE_ON_ONE_NODE
            return [callback for callback in callbacks if type(callback).__name__ not in idle]

    # What the workers print ends in the job's log, and so with whoever waits for the job.
    ray.init(address=request.ray_address, log_to_driver=True, logging_level="ERROR")
    remote = getattr(files, "fs", None)
    Trainer(
        train_rank,
        train_loop_config={"url": url},
        torch_config=TorchConfig(backend="nccl" if request.gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=request.runtime.train_workers,
            use_gpu=request.gpu,
            resources_per_worker={"CPU": request.cpus, **({"GPU": 1} if request.gpu else {})},
        ),
        run_config=RunConfig(
            name=request.key,
            storage_path=url if remote is None else files.root,  # type: ignore[attr-defined]
            storage_filesystem=None if remote is None else _arrow(remote),
            failure_config=FailureConfig(max_failures=RESTARTS),
            checkpoint_config=CheckpointConfig(num_to_keep=2),  # one to fall back on when the last is torn
        ),
    ).fit()


def _arrow(filesystem: Any) -> Any:
    from pyarrow import fs

    return fs.PyFileSystem(fs.FSSpecHandler(filesystem))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
