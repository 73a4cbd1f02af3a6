"""A sweep as a Prefect flow: one set of rows, an autoencoder for each point of a grid, and their Pareto fronts.

    saeflow sweep demo --grid train.k=4,8,16 --grid train.lr=2e-3,8e-3

    from flows.sweep import run
    run(load_preset("demo"), ["train.k=4,8,16"], store="saeflow-store")

As many train at once as the cluster holds; points that were trained before are Cached.
"""

from typing import Literal, get_args

from prefect import flow, runtime
from prefect.artifacts import create_link_artifact

from flows.config import PipelineConfig, grid_points
from flows.dag import SWEEP_STAGES, wire_sweep
from flows.form import titled
from flows.notices import NOTICES
from flows.preflight import check
from flows.stages import PrefectDo
from tasks import guard
from tasks.archive import ArchiveSpec
from tasks.artifacts import Artifact, open_store
from tasks.capture import CaptureSpec
from tasks.corpus import CorpusSpec
from tasks.evaluate import EvaluateSpec
from tasks.model import ModelSpec
from tasks.preprocess import PreprocessSpec
from tasks.runtime import Runtime
from tasks.settings import settings
from tasks.train import TrainSpec, trainings_at_once

PARTS = ("name", "model", "corpus", "capture", "archive", "preprocess", "train", "evaluate", "runtime")
StageName = Literal["model", "corpus", "capture", "archive", "preprocess", "train", "evaluate", "sweep"]
assert get_args(StageName) == tuple(SWEEP_STAGES), "the form's drop-down must list the stages"


def _run_name() -> str:
    given = runtime.flow_run.parameters
    config = PipelineConfig.model_validate({name: given[name] for name in PARTS})
    return f"{config.title()} over {' x '.join(given['grid'])}"


@titled
@flow(name="sweep", flow_run_name=_run_name, persist_result=False, log_prints=False, **NOTICES)
def sweep(
    grid: list[str] = ["train.k=4,8,16"],  # noqa: B006 (Prefect shows a list field only for a list default)
    name: str = "custom",
    model: ModelSpec = ModelSpec(),
    corpus: CorpusSpec = CorpusSpec(),
    capture: CaptureSpec = CaptureSpec(),
    archive: ArchiveSpec = ArchiveSpec(),
    preprocess: PreprocessSpec = PreprocessSpec(),
    train: TrainSpec = TrainSpec(),
    evaluate: EvaluateSpec = EvaluateSpec(),
    runtime: Runtime = Runtime(),
    store: str | None = None,
    force: list[StageName] = [],  # noqa: B006
) -> None:
    """Trains an autoencoder for each point of a grid on the same rows, and draws their Pareto fronts.

    Args:
        grid: Settings of train with their values, such as train.k=4,8,16; every combination is trained.
        name: A short name for the run.
        model: The language model to look into; an empty path trains the demo's own small model.
        corpus: The text it reads; an empty path takes the documentation that Python itself carries.
        capture: Which activations are recorded, and in how many shards.
        archive: How the shards are packed.
        preprocess: How rows are shuffled and split.
        train: What all points share.
        evaluate: How much is held out to measure them.
        runtime: Workers, threads, devices: changes how it is run, not what is computed.
        store: Where artifacts live, a folder or s3://bucket/prefix; empty takes SAEFLOW_STORE.
        force: Stages to make again although they are there.
    """
    config = PipelineConfig(
        name=name, model=model, corpus=corpus, capture=capture, archive=archive, preprocess=preprocess, train=train,
        evaluate=evaluate, runtime=runtime,
    )  # fmt: skip
    _carry_out(config, grid, store, frozenset(force))


def run(config: PipelineConfig, grid: list[str], store: str | None = None, force: frozenset[str] = frozenset()) -> None:
    """Runs the flow in this process with a composed configuration."""
    sweep(grid, **{name: getattr(config, name) for name in PARTS}, store=store, force=sorted(force))


def _carry_out(
    config: PipelineConfig, grid: list[str], store_url: str | None, force: frozenset[str]
) -> dict[str, Artifact]:
    """The body of the flow: checks what can be known at once, walks the wiring, and links the page."""
    now = settings()
    config = config.resolved(now)
    points = grid_points(config, grid)
    place = open_store(store_url or now.store)
    planned = check(config, place, force, points)
    guard.protect()  # under a worker too: what the run starts ends with it
    to_train = any(entry.stage == "train" and entry.state != "Cached" for entry in planned)
    at_once = trainings_at_once(config.runtime) if to_train else 1
    do = PrefectDo(place, config.runtime, force, None, frozenset(SWEEP_STAGES))
    artifacts = do.walk(lambda: wire_sweep(config, points, do, at_once))
    create_link_artifact(
        artifacts["sweep"].url("sweep.html"), link_text="sweep.html", key="sweep", description="The Pareto fronts"
    )
    return artifacts
