"""The pipeline as a Prefect flow: text and a model in, a labelled sparse autoencoder and its report out.

Run by `saeflow run`, from the Prefect UI (deployments/prefect.yaml), or here in Python:

    from flows.config import load_preset
    from flows.pipeline import run
    run(load_preset("demo"), store="saeflow-store")
"""

from typing import Literal, get_args

from prefect import flow, runtime

from flows.config import PipelineConfig
from flows.dag import STAGES, wire
from flows.form import titled
from flows.notices import NOTICES
from flows.page import leave_links
from flows.preflight import check
from flows.stages import PrefectDo
from tasks import guard
from tasks.archive import ArchiveSpec
from tasks.artifacts import Artifact, open_store
from tasks.capture import CaptureSpec
from tasks.cluster import start_ahead
from tasks.corpus import CorpusSpec
from tasks.evaluate import EvaluateSpec
from tasks.examples import ExamplesSpec
from tasks.label import LabelSpec
from tasks.model import ModelSpec
from tasks.preprocess import PreprocessSpec
from tasks.report import ReportSpec
from tasks.runtime import Runtime
from tasks.score import ScoreSpec
from tasks.settings import settings
from tasks.train import TrainSpec

StageName = Literal[
    "model", "corpus", "capture", "archive", "preprocess", "train", "evaluate", "examples", "label", "score", "report"
]
assert get_args(StageName) == tuple(STAGES), "the form's drop-down must list the stages"


def _run_name() -> str:
    given = runtime.flow_run.parameters
    return PipelineConfig.model_validate({name: given[name] for name in PipelineConfig.model_fields}).title()


@titled
@flow(name="pipeline", flow_run_name=_run_name, persist_result=False, log_prints=False, **NOTICES)
def pipeline(
    name: str = "custom",
    model: ModelSpec = ModelSpec(),
    corpus: CorpusSpec = CorpusSpec(),
    capture: CaptureSpec = CaptureSpec(),
    archive: ArchiveSpec = ArchiveSpec(),
    preprocess: PreprocessSpec = PreprocessSpec(),
    train: TrainSpec = TrainSpec(),
    evaluate: EvaluateSpec = EvaluateSpec(),
    examples: ExamplesSpec = ExamplesSpec(),
    labeller: Literal["auto", "claude", "keywords"] = "auto",
    claude_latents: int | None = None,
    label: LabelSpec = LabelSpec(),
    score: ScoreSpec = ScoreSpec(),
    report: ReportSpec = ReportSpec(),
    runtime: Runtime = Runtime(),
    store: str | None = None,
    force: list[StageName] = [],  # noqa: B006 (Prefect shows a list field only for a list default; it is not mutated)
    only: StageName | None = None,
) -> None:
    """Text becomes a labelled sparse autoencoder. Stages whose work is done already are Cached.

    Args:
        name: A short name for the run.
        model: The language model to look into; an empty path trains the demo's own small model.
        corpus: The text it reads; an empty path takes the documentation that Python itself carries.
        capture: Which activations are recorded, and in how many shards.
        archive: How the shards are packed.
        preprocess: How rows are shuffled and split.
        train: The sparse autoencoder: latents, k, batch, steps, learning rate.
        evaluate: How much is held out to measure it.
        examples: How many examples are kept per latent.
        labeller: Who labels and scores; auto asks Claude when ANTHROPIC_API_KEY is set, else uses keywords.
        claude_latents: How many latents Claude labels and scores, drawn at random; empty: all that can be labelled.
        label: What the labels are made from.
        score: How the labels are tested.
        report: What the page shows.
        runtime: Workers, threads, devices, budget: changes how it is run, not what is computed.
        store: Where artifacts live, a folder or s3://bucket/prefix; empty takes SAEFLOW_STORE.
        force: Stages to make again although they are there.
        only: Build this one stage on earlier artifacts, and nothing after it.
    """
    config = PipelineConfig(
        name=name, model=model, corpus=corpus, capture=capture, archive=archive, preprocess=preprocess, train=train,
        evaluate=evaluate, examples=examples, labeller=labeller, claude_latents=claude_latents, label=label,
        score=score, report=report, runtime=runtime,
    )  # fmt: skip
    carry_out(config, store, frozenset(force), only)


def run(
    config: PipelineConfig, store: str | None = None, force: frozenset[str] = frozenset(), only: str | None = None
) -> None:
    """Runs the flow in this process with a composed configuration."""
    values = {name: getattr(config, name) for name in PipelineConfig.model_fields}
    pipeline(**values, store=store, force=sorted(force), only=only)


def carry_out(
    config: PipelineConfig, store_url: str | None, force: frozenset[str], only: str | None
) -> dict[str, Artifact]:
    """The body of the flow: checks what can be known at once, walks the wiring, and leaves links on the run's page."""
    now = settings()
    config = config.resolved(now)
    store = open_store(store_url or now.store)
    planned = check(config, store, force, only=only)
    guard.protect()  # under a worker too: what the run starts ends with it
    to_do = {entry.stage for entry in planned if entry.state != "Cached"}
    if "capture" in to_do and to_do & {"model", "corpus"} and only is None:
        start_ahead(config.runtime)
    do = PrefectDo(store, config.runtime, force, only, frozenset(entry.stage for entry in planned))
    artifacts = do.walk(lambda: wire(config, do))
    if "report" in artifacts:
        leave_links(config.title(), artifacts, config.runtime.ray_dashboard, config.runtime.wandb)
    return artifacts
