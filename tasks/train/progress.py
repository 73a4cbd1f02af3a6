"""The files in which a training stage, its job and its workers meet: all below the stage's progress folder.

    request.json    what is to be done                      written by the stage
    status.json     how far it is                           by rank 0, every second
    fault.json      why it cannot go on, in one sentence    by a worker or the job
    <key>/          Ray Train's run: its snapshot, and the checkpoints

A checkpoint is a folder `checkpoint_...` that Ray Train has brought into the progress folder: state.safetensors (the
trainer's tensors) and state.json (step, sha256 of the tensors, history and layouts so far). Ray uploads file by file
and writes its own snapshot in place, so a kill can leave either torn. `newest` believes nothing but the sha256;
`repair_snapshot` removes a snapshot that would keep Ray Train from starting.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from tasks.artifacts import Artifact, Manifest
from tasks.runtime import Runtime
from tasks.train.spec import TrainSpec

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.artifacts.files import Files

REQUEST = "request.json"
STATUS = "status.json"
FAULT = "fault.json"
TENSORS = "state.safetensors"
STATE = "state.json"
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's own record
History = list[dict[str, Any]]
Layouts = list[dict[str, Any]]  # from_step, workers, micro_batch, threads, device: one entry each time they changed


class Request(BaseModel):
    """What a training job is to do."""

    key: str
    spec: TrainSpec
    store_url: str
    rows: Manifest
    runtime: Runtime
    ray_address: str | None  # of the cluster, for the job's driver; None: the one Ray names to it
    gpu: bool
    cpus: int

    @property
    def artifact(self) -> Artifact:
        """The rows to train on."""
        return Artifact(self.store_url, self.rows)


def read_request(files: "Files") -> Request:
    """The request in a progress folder; FileNotFoundError where there is none."""
    data = files.read(REQUEST)
    if data is None:
        raise FileNotFoundError(f"{files.url} holds no {REQUEST}: this is not the progress folder of a training.")
    return Request.model_validate_json(data)


def write_fault(files: "Files", kind: Literal["input", "failure"], message: str) -> None:
    """Leaves the reason why the training cannot go on; "input" where a person has to change something."""
    files.write(FAULT, json.dumps({"kind": kind, "message": message}).encode())


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: the trainer's tensors, how many steps were made, the history up to there, how it was run."""

    step: int
    tensors: "dict[str, Tensor]"
    history: History
    layouts: Layouts
    folder: str  # relative to the progress folder


def write(folder: Path, tensors: "dict[str, Tensor]", history: History, layouts: Layouts) -> None:
    """Writes a checkpoint's two files into a local folder."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / TENSORS)
    with (folder / TENSORS).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    state = {"step": int(tensors["step"]), "sha256": sha256, "history": history, "layouts": layouts}
    (folder / STATE).write_text(json.dumps(state))


def newest(files: "Files") -> Checkpoint | None:
    """The whole checkpoint of the most steps below the progress folder, passing over torn ones; None without any."""
    for state, folder in sorted(_states(files), key=lambda found: (-found[0]["step"], found[1])):
        tensors = _tensors(files, folder, state["sha256"])
        if tensors is not None:
            return Checkpoint(state["step"], tensors, state["history"], state["layouts"], folder)
    return None


def load(files: "Files", folder: str) -> Checkpoint | None:
    """The checkpoint in one folder, or None where it is not whole."""
    state = _state(files, folder)
    tensors = None if state is None else _tensors(files, folder, state["sha256"])
    if state is None or tensors is None:
        return None
    return Checkpoint(state["step"], tensors, state["history"], state["layouts"], folder)


def repair_snapshot(files: "Files", run: str) -> None:
    """Removes Ray Train's snapshot where it is torn or names checkpoints that are gone: Ray would refuse to start."""
    data = files.read(f"{run}/{SNAPSHOT}")
    if data is None:
        return
    there = {name.split("/")[0] for name in files.names(run)}
    try:
        named = {result["checkpoint_dir_name"] for result in json.loads(data)["checkpoint_results"]}
    except (ValueError, KeyError, TypeError):
        named = {""}
    if not named <= there:
        files.remove(f"{run}/{SNAPSHOT}")


def _states(files: "Files") -> Iterator[tuple[dict[str, Any], str]]:
    for name in files.names(""):
        folder, _, file = name.rpartition("/")
        if file == STATE:
            state = _state(files, folder)
            if state is not None:
                yield state, folder


def _state(files: "Files", folder: str) -> dict[str, Any] | None:
    try:
        state = json.loads(files.read(f"{folder}/{STATE}") or b"")
    except ValueError:
        return None
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        return None
    return state if {"sha256", "history", "layouts"} <= state.keys() else None


def _tensors(files: "Files", folder: str, sha256: str) -> "dict[str, Tensor] | None":
    from safetensors.torch import load

    with _local(files, f"{folder}/{TENSORS}") as path:
        if path is None:
            return None
        data = path.read_bytes()
    return load(data) if hashlib.sha256(data).hexdigest() == sha256 else None


@contextmanager
def _local(files: "Files", name: str) -> Iterator[Path | None]:
    from tasks.artifacts.workspace import own_scratch

    there = files.local(name)
    if there is not None:
        yield there if there.is_file() else None
        return
    with tempfile.TemporaryDirectory(dir=own_scratch()) as folder:
        path = Path(folder) / TENSORS
        try:
            files.download(name, path)
        except FileNotFoundError:
            yield None
            return
        yield path
