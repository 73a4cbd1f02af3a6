"""What can be known to fail is told in a run's first second, in one sentence, before anything is computed."""

from flows.config import PipelineConfig
from flows.estimate import estimate
from flows.planner import plan
from tasks.artifacts import Store
from tasks.errors import InputError, StoreError
from tasks.model import describe_model


def check(config: PipelineConfig, store: Store) -> None:
    """Raises InputError or StoreError when the run cannot end well: store, layers, space."""
    store.check()
    _check_layers(config)
    _check_space(config, store)


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


def _check_space(config: PipelineConfig, store: Store) -> None:
    free = store.files.free_bytes()
    if free is None:
        return
    planned = plan(config, store)
    if all(entry.state == "Cached" for entry in planned):
        return
    needed = estimate(config, planned).largest_bytes
    if needed > free:
        raise StoreError(
            f"{store.url} has {free / 1e9:.1f} GB free, but the largest stage needs about {needed / 1e9:.1f} GB; "
            "free some space (saeflow gc), choose another --store, or take fewer rows (corpus.max_rows)."
        )
