"""What can be known to fail is told in a run's first second, in one sentence, before anything is computed."""

from collections.abc import Sequence

from flows.config import PipelineConfig
from flows.estimate import Estimate, estimate
from flows.planner import Planned, plan
from tasks.artifacts import Store
from tasks.claude.service import check_access
from tasks.errors import InputError, StoreError
from tasks.model import describe_model
from tasks.train import TrainSpec


def check(config: PipelineConfig, store: Store, points: Sequence[TrainSpec] = ()) -> list[Planned]:
    """Raises InputError or StoreError when the run cannot end well: store, layers, space, budget, key.

    `points` are those of a sweep. Returns the plan that it was judged by.
    """
    store.check()
    _check_layers(config)
    planned = plan(config, store, points=points)
    to_do = {entry.stage for entry in planned if entry.state != "Cached"}
    if to_do:
        needs = estimate(config, planned, points)
        _check_space(needs, store)
        _check_budget(needs, to_do, config)
        if to_do & {name for name, dollars in needs.dollars.items() if dollars}:
            check_access()
    return planned


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


def _check_space(needs: Estimate, store: Store) -> None:
    free = store.files.free_bytes()
    if free is not None and needs.largest_bytes > free:
        raise StoreError(
            f"{store.url} has {free / 1e9:.1f} GB free, but the largest stage needs about "
            f"{needs.largest_bytes / 1e9:.1f} GB; free some space (saeflow gc), choose another --store, or take fewer "
            "rows (corpus.max_rows)."
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
