"""What can be known to fail is told in a run's first second, in one sentence, before anything is computed."""

from collections.abc import Sequence

from flows.config import PipelineConfig
from flows.estimate import Estimate, estimate
from flows.planner import Planned, plan
from tasks.artifacts import Store
from tasks.claude.service import check_access
from tasks.cluster import reach
from tasks.errors import InputError, NotHereError, SaeflowError, StoreError
from tasks.folders import why_not_writable
from tasks.model import describe_model, reads_chats
from tasks.settings import settings
from tasks.train import TrainSpec

ON_RAY = {"capture", "train"}
PAYING = {"label", "score"}


def check(
    config: PipelineConfig,
    store: Store,
    force: frozenset[str] = frozenset(),
    points: Sequence[TrainSpec] = (),
    only: str | None = None,
) -> list[Planned]:
    """Raises InputError, StoreError or ClusterError when the run cannot end well.

    `points` are those of a sweep. Returns the plan that it was judged by; with `only`, of what that stage needs.
    """
    if only is not None and force - {only}:
        raise InputError(
            f"{only} is to be built alone, so {', '.join(sorted(force - {only}))} cannot be made again; leave out "
            "--force, or --only."
        )
    planned = plan(config, store, force, points, only)
    lacking = lacking_here(config, store, planned, points, only)
    if isinstance(lacking, NotHereError):  # first: what follows is told more exactly where the model is known
        raise lacking
    judge(config, store, planned, points, only)
    if lacking is not None:
        raise lacking
    to_do = _to_do(planned, only)
    if to_do & ON_RAY:
        reach(config.runtime)
    if to_do & PAYING and any(estimate(config, planned, points).dollars[stage] for stage in to_do & PAYING):
        check_access()
    return planned


def judge(
    config: PipelineConfig,
    store: Store,
    planned: list[Planned],
    points: Sequence[TrainSpec] = (),
    only: str | None = None,
) -> None:
    """What of it can be told without other services: earlier artifacts, store, folders, layers, text, budget."""
    for entry in planned:
        if entry.problem is not None and not isinstance(entry.problem, NotHereError):
            raise entry.problem
    missing = next((entry.stage for entry in planned if entry.state != "Cached" and entry.stage != only), None)
    if only is not None and missing is not None:
        raise needed_first(only, missing, store)
    to_do = _to_do(planned, only)
    if not to_do:
        return
    store.check()
    check_folders()
    if "capture" in to_do:
        _check_layers(config)
        _check_chats(config)
    _check_text(config, planned)
    if to_do - {"model", "corpus"}:
        _check_budget(estimate(config, planned, points), to_do, config)


def lacking_here(
    config: PipelineConfig,
    store: Store,
    planned: list[Planned],
    points: Sequence[TrainSpec] = (),
    only: str | None = None,
) -> SaeflowError | None:
    """What would end a run on this machine and may not elsewhere: a name to be looked up, or space; None: nothing."""
    for entry in planned:
        if isinstance(entry.problem, NotHereError):
            return entry.problem
    if not _to_do(planned, only) - {"model", "corpus"}:
        return None
    return _too_little_space(estimate(config, planned, points).still_needed_bytes(planned), store)


def needed_first(only: str, missing: str, store: Store) -> InputError:
    """What is said when a stage is to be built alone and what it reads is not there."""
    return InputError(
        f"{only} needs the artifact of {missing}, which is not in {store.url} for these settings; build it first "
        f"(--only {missing}, or the flow {missing}), or run the whole pipeline."
    )


def _to_do(planned: list[Planned], only: str | None) -> set[str]:
    return {entry.stage for entry in planned if entry.state != "Cached" and only in (None, entry.stage)}


def check_folders() -> None:
    """Raises InputError where a folder that the environment names cannot be written."""
    now = settings()
    for name, folder in (("SAEFLOW_CACHE", now.cache), ("SAEFLOW_SCRATCH", now.scratch)):
        reason = why_not_writable(folder)
        if reason is not None:
            raise InputError(f"{name} is {folder}, where nothing can be written: {reason}. Set it to another folder.")


def _check_layers(config: PipelineConfig) -> None:
    described = describe_model(config.model)
    if described is None:  # a hub name whose configuration is not here yet: capture will say
        return
    for site in config.capture.sites:
        layer = int(site.rpartition(".")[2])
        if layer >= described.n_layers:
            raise InputError(
                f"capture.sites names {site!r}, but the model has {described.n_layers} layers, 0 to "
                f"{described.n_layers - 1}; choose one of these."
            )


def _check_chats(config: PipelineConfig) -> None:
    if config.corpus.unit == "chat" and reads_chats(config.model) is False:
        model = config.model.path or "the demo's own model"
        raise InputError(
            f"corpus.unit is 'chat', but {model} has no chat template; name an instruction-tuned model in "
            "model.path, or take corpus.unit=document."
        )


def _check_text(config: PipelineConfig, planned: list[Planned]) -> None:
    for entry in planned:
        files = (entry.outside or {}).get("files", []) if entry.stage == "corpus" else []
        if files and all(file["size"] == 0 for file in files):
            raise InputError(f"corpus.path is {config.corpus.path!r}, which holds not one byte; give it some text.")


def _too_little_space(needed_bytes: int, store: Store) -> StoreError | None:
    free = store.files.free_bytes()
    if free is None or needed_bytes <= free:
        return None
    return StoreError(
        f"{store.url} has {free / 1e9:.1f} GB free, but the stages that are not stored yet need about "
        f"{needed_bytes / 1e9:.1f} GB; free some space (saeflow gc), choose another --store, or take less "
        "(corpus.max_rows, train.n_latents)."
    )


def _check_budget(needs: Estimate, to_do: set[str], config: PipelineConfig) -> None:
    """The cap holds for each stage that pays; the stage itself checks again, with the real examples."""
    budget = config.runtime.budget_dollars
    for stage, dollars in needs.dollars.items():
        if stage in to_do and dollars > budget:
            fitting = int((config.label.max_latents or config.train.n_latents) * budget / dollars)
            raise InputError(
                f"{stage} may cost up to ${dollars:.2f}, but runtime.budget_dollars is {budget:g}; raise the budget, "
                f"label fewer latents (label.max_latents={fitting} fits), or set labeller=keywords."
            )
