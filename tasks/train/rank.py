"""What each worker of a training does: read its share of every batch, step, and leave checkpoints.

Runs inside Ray Train. All state is in the checkpoint and in the number of the step: rows, learning rate and log points
are pure functions of it, so that a worker that starts again repeats what would have been.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.artifacts import Artifact
from tasks.artifacts.files import Files, open_files
from tasks.artifacts.workspace import own_scratch
from tasks.errors import SaeflowError
from tasks.settings import settings
from tasks.train.progress import STATUS, History, Layouts, Request, load, newest, read_request, write, write_fault
from tasks.train.validation import POINTS, ROWS, Validation
from tasks.train.view import View

if TYPE_CHECKING:
    from sae_core import SAE, Rows, Trainer

STATUS_SECONDS = 1.0
SAMPLE_ROWS = 1 << 16  # rows, in their global shuffle, that give a median, or a mean after standardising


def train_rank(config: dict[str, str]) -> None:
    """Trains to the last step. An error that trying again cannot mend is written down instead of raised."""
    from sae_core import SAEError

    files = open_files(config["url"])
    try:
        _train(files, read_request(files))
    except (SAEError, SaeflowError) as error:
        write_fault(files, "input", str(error))


def _train(files: Files, request: Request) -> None:
    import ray.train
    import ray.train.torch
    import torch
    import torch.distributed as dist

    from sae_core import Feed, Rows, Trainer, make_sae
    from sae_core.rows import input_and_target

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    spec, runtime = request.spec, request.runtime
    torch.set_num_threads(runtime.train_threads)  # Ray gives a worker one thread; bits depend on the number
    device = ray.train.torch.get_device() if request.gpu else torch.device("cpu")

    artifact = request.artifact
    rows = Rows([artifact.path(name) for name in artifact.names() if name.startswith("train-")], spec.seed)
    d = artifact.json("index.json")["d"]
    sae = make_sae(spec.sae_config(d))
    variance = start(sae, rows, artifact, spec.pre_bias_from)
    config, group, micro_batch = spec.trainer_config(len(rows), d), dist.group.WORLD, runtime.train_micro_batch
    assert group is not None, "Ray Train has made the group of all workers"
    trainer = Trainer(sae.to(device), config, variance=variance, group=group, micro_batch=micro_batch)
    history, layouts = _resume(files, trainer)
    layout = {"workers": world, "micro_batch": micro_batch, "threads": runtime.train_threads, "device": device.type}
    if not layouts or layout != {name: layouts[-1][name] for name in layout}:
        layouts.append({"from_step": trainer.step_number, **layout})
    held_out = ROWS if spec.validation_rows is None else spec.validation_rows
    validation = Validation.of(artifact, held_out, group, device)

    mode = (runtime.wandb or "offline") if rank == 0 else "disabled"
    view = View(mode, request.key, spec.model_dump(mode="json"), settings().cache)
    steps, log_every = config.steps, spec.steps_between_logs(len(rows))
    validate_every = -(-steps // (log_every * POINTS)) * log_every
    shown = 0.0
    remaining = range(trainer.step_number, steps)
    with Feed(rows, remaining, batch_size=spec.batch_size, rank=rank, world_size=world, device=device) as feed:
        for batch_BD in feed:
            lr = trainer.learning_rate
            trainer.step(*input_and_target(batch_BD, d))
            done = trainer.step_number
            if done % log_every == 0 or done == steps:
                history.append({"step": done, "tokens": done * spec.batch_size, **trainer.figures(), "lr": lr})
                if validation and (done % validate_every == 0 or done == steps):
                    history[-1] |= validation.figures(trainer)
                view.log(history[-1])
            if done % runtime.checkpoint_every_steps == 0 or done == steps:
                _report(trainer, history, layouts, rank)
            if rank == 0 and (time.monotonic() - shown > STATUS_SECONDS or done == steps):
                shown = time.monotonic()
                files.write(STATUS, json.dumps({"step": done, "steps": steps}).encode())
    view.close()


def start(sae: "SAE", rows: "Rows", artifact: Artifact, pre_bias_from: str | None = None) -> float:
    """Sets pre-bias and scales from the data; returns the total variance, all where the loss is taken.

    The pre-bias is the mean, or the geometric median of SAMPLE_ROWS rows (Bricken et al. 2023), where it is subtracted
    before encoding, else zero, as the published recipes have it; of its target where a transcoder only adds it.
    llama3_interpretability_sae measured the mean of raw activations and used it after standardising; here both are the
    same space. Scale: E||x|| = sqrt(d) (Anthropic, April 2024 update).
    """
    import torch
    from safetensors.torch import load_file

    from sae_core import Moments, Transcoder, geometric_median
    from sae_core.rows import input_and_target

    def sample() -> "torch.Tensor":
        x_BD, target_BD = input_and_target(rows.read(0, SAMPLE_ROWS), sae.config.d_in)
        return sae.training_pair(x_BD, target_BD)[1]

    if sae.config.normalization == "standardise_rows":
        moments = Moments.of(sample())
        centre_D, variance = moments.mean_D, float(moments.variance().sum())
    else:
        statistics, index = load_file(artifact.path("statistics.safetensors")), artifact.json("index.json")
        scale, of = 1.0, ""
        if sae.config.normalization == "scale":
            scale = sae.config.d_in**0.5 / float(index["mean_norm"])
        sae.input_scale.fill_(scale)
        if isinstance(sae, Transcoder):
            if sae.config.normalization == "scale":
                scale = sae.config.width_out**0.5 / float(index["target"]["mean_norm"])
            sae.target_scale.fill_(scale)
            of = "target_"
        centre_D = statistics[f"{of}mean"] * scale
        variance = float(statistics[f"{of}variance"].double().sum()) * scale**2
    if sae.config.subtracts_pre_bias or isinstance(sae, Transcoder):
        if pre_bias_from == "geometric_median":
            centre_D = geometric_median(sample())
        with torch.no_grad():
            sae.b_pre.copy_(centre_D)
    return variance


def _resume(files: Files, trainer: "Trainer") -> tuple[History, Layouts]:
    """Takes over the newest whole checkpoint, the one rank 0 finds; returns the history and how it was run up to it."""
    import torch.distributed as dist

    checkpoint = newest(files) if dist.get_rank() == 0 else None
    chosen = [checkpoint.folder if checkpoint else None]
    dist.broadcast_object_list(chosen, src=0)
    if chosen[0] is None:
        return [], []
    checkpoint = checkpoint or load(files, chosen[0])
    if checkpoint is None:
        raise RuntimeError(f"The checkpoint {chosen[0]} that rank 0 has read cannot be read here.")
    trainer.load_state_dict(checkpoint.tensors)
    return checkpoint.history, checkpoint.layouts


def _report(trainer: "Trainer", history: History, layouts: Layouts, rank: int) -> None:
    """Leaves a checkpoint; all ranks take part, rank 0 writes: their states are equal."""
    import ray.train

    metrics = {"step": trainer.step_number}
    if rank != 0:
        ray.train.report(metrics)
        return
    # In the scratch folder, from which the next process removes what a killed one left.
    with tempfile.TemporaryDirectory(dir=own_scratch()) as folder:
        write(Path(folder), trainer.state_dict(), history, layouts)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
