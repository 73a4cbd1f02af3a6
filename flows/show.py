"""Tables and trees of the command line: plan, status, lineage, presets, settings."""

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from flows.compare import compare
from flows.config import PipelineConfig, load_preset
from flows.config import presets as preset_names
from flows.estimate import estimate
from flows.hardware import PRICES_AS_OF, Hardware, hardware
from flows.live import clock_text, quantity
from flows.planner import Planned
from flows.sizing import Cost, sizing
from tasks.artifacts import InputReference, Manifest, Store
from tasks.artifacts.lease import LEASE
from tasks.artifacts.maintenance import inputs_of
from tasks.artifacts.store import Unreadable, key_folder, progress_folder
from tasks.errors import ArtifactError
from tasks.train import TrainSpec

COLOURS = {"Cached": "cyan", "will run": "yellow", "depends": "dim"}


def show_plan(
    console: Console, config: PipelineConfig, planned: list[Planned], store: Store, points: Sequence[TrainSpec] = ()
) -> None:
    """One line per stage (shards or points that stand alike are one line), then what the run needs."""
    console.print(f"{config.title()}\nstore {store.url}", highlight=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "state", "why"):
        table.add_column(name, no_wrap=name != "why")
    groups: dict[tuple[str, str, str], list[Planned]] = {}
    for entry in planned:
        why = "" if entry.state == "Cached" and entry.shard is not None else entry.why
        groups.setdefault((entry.stage, entry.state, why), []).append(entry)
    for (stage, state, why), entries in groups.items():
        shard = entries[0].shard
        label = stage if shard is None else f"{stage} {shard + 1}" if len(entries) == 1 else f"{stage} ×{len(entries)}"
        table.add_row(label, f"[{COLOURS[state]}]{state}[/]", why)
    console.print(table)
    needs = estimate(config, planned, points)
    free = store.files.free_bytes()
    parts = []
    if needs.tokens is not None:
        parts.append(f"~{quantity(needs.tokens)} tokens")
    if needs.captured_bytes is not None and needs.archived_bytes is not None and needs.shuffled_bytes is not None:
        stored = needs.captured_bytes + needs.archived_bytes + needs.shuffled_bytes
        parts.append(f"~{quantity(stored)}B stored" + (f" ({quantity(free)}B free)" if free is not None else ""))
    if needs.training_flop is not None:
        parts.append(f"training {quantity(needs.training_flop)}FLOP")
    dollars = sum(needs.dollars.values())
    parts.append(f"Claude at most ${dollars:.2f}" if dollars else "no paid service")
    console.print("needs " + ", ".join(parts), highlight=False, soft_wrap=True)
    if config.runtime.hardware is not None and not points:
        on = hardware(config.runtime.hardware)
        _show_costs(console, sizing(config, needs, on), on)


def _show_costs(console: Console, costs: list[Cost], on: Hardware) -> None:
    """What the whole run takes on that hardware, as if nothing were stored yet."""
    if not costs:
        console.print(f"times on {on.name}: not known before the model's config.json and the size of the text are")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("the whole run", "time", "GPU-hours", "stored", "reckoned from"):
        table.add_column(name, justify="right" if name in ("time", "GPU-hours", "stored") else "left")
    for cost in costs:
        gpu_hours = f"{cost.gpu_seconds / 3600:.1f}" if cost.gpu_seconds else ""
        stored = f"{quantity(cost.stored_bytes)}B" if cost.stored_bytes else ""
        table.add_row(cost.stage, clock_text(cost.seconds), gpu_hours, stored, cost.how)
    console.print(table)
    seconds, gpu_seconds = sum(cost.seconds for cost in costs), sum(cost.gpu_seconds for cost in costs)
    hours = seconds / 3600 * on.gpus  # the machine is paid for also while its GPUs wait
    console.print(
        f"on {on.name}: {clock_text(seconds)}, {gpu_seconds / 3600:.0f} GPU-hours of work, "
        f"${hours * on.gpu.dollars:,.0f} for the machine ({hours:.0f} GPU-hours at ${on.gpu.dollars:.2f}, "
        f"{PRICES_AS_OF}). Label and score wait for Claude without it, at most 24 h each.",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def tell_unreadable(console: Console) -> Unreadable:
    """Prints which manifest cannot be read, for commands that go on with the others."""

    def tell(stage: str, key: str, error: ArtifactError) -> None:
        console.print(f"[red]{stage} {key[:12]}[/]: {error}", highlight=False, soft_wrap=True)

    return tell


def show_status(console: Console, store: Store) -> None:
    """What is stored, and what is unfinished."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "artifacts", "size", "newest", "key"):
        table.add_column(name, justify="right" if name in ("artifacts", "size") else "left", no_wrap=True)
    unfinished = []
    torn: list[tuple[str, str, ArtifactError]] = []
    for stage in store.stages():
        found = store.manifests(stage, lambda *fault: torn.append(fault))
        manifests = sorted(found, key=lambda manifest: str(manifest.made.get("started")))
        for key in set(store.keys(stage)) - {manifest.key for manifest in manifests} - {key for _, key, _ in torn}:
            here = store.own.names(key_folder(stage, key))
            if all(re.fullmatch(r"attempts/[^/]+\.json", name) for name in here):
                continue  # let go by retention, or begun by others in a store below this one
            kept = [name for name in store.files.names(progress_folder(stage, key)) if name != LEASE]
            unfinished.append(f"{stage} {key[:12]}: {f'{len(kept)} files of progress' if kept else 'begun'}")
        if manifests:
            size = sum(manifest.size for manifest in manifests)
            newest = manifests[-1]
            table.add_row(
                stage, str(len(manifests)), f"{quantity(size)}B", str(newest.made.get("started"))[:19], newest.key[:12]
            )
    console.print(f"store {store.url}", highlight=False, soft_wrap=True)
    console.print(table if table.row_count else "It holds no artifact yet: saeflow run demo", highlight=False)
    for line in unfinished:
        console.print(f"unfinished  {line}", highlight=False)
    for fault in torn:
        tell_unreadable(console)(*fault)


def show_lineage(console: Console, store: Store, manifest: Manifest) -> None:
    """The artifact at the root, what it was made from below it."""
    tree = Tree(_named(manifest))
    _grow(tree, store, manifest)
    console.print(tree, highlight=False)


def _grow(tree: Tree, store: Store, manifest: Manifest) -> None:
    for name, found in inputs_of(store, manifest).items():
        first = found[0] if found else None
        many = f" ×{len(found)}, the first:" if len(found) > 1 else ""
        if isinstance(first, Manifest):
            _grow(tree.add(f"[dim]{name}{many}[/] {_named(first)}"), store, first)
        elif isinstance(first, InputReference):
            tree.add(f"[dim]{name}{many}[/] {first.stage} {first.key[:12]} [red]gone[/]")


def show_difference(console: Console, store: Store, first: Manifest, second: Manifest) -> None:
    """Two results side by side: settings and figures in which they differ, and which stages are the same."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("stage", "", f"{first.stage} {first.key[:12]}", f"{second.stage} {second.key[:12]}"):
        table.add_column(name, overflow="fold")
    same = []
    for found in compare(store, first, second):
        if found.same:
            same.append(found.stage)
        for kind, pairs in (("", found.settings), ("dim", found.figures)):
            for name, (a, b) in pairs.items():
                table.add_row(found.stage, name, _value(a), _value(b), style=kind)
    console.print(table if table.row_count else "They do not differ.", highlight=False)
    if same:
        console.print(f"the same: {', '.join(same)}", highlight=False)


def _value(value: Any) -> str:
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _named(manifest: Manifest) -> str:
    made = str(manifest.made.get("started"))[:19]
    size = f"{quantity(manifest.size)}B"
    return f"[bold]{manifest.stage}[/] {manifest.key[:12]}  digest {manifest.digest[:12]}  {size}  {made}"


def show_presets(console: Console) -> None:
    """Each preset and what it is."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("preset", "model", "site", "autoencoder", "reckoned for"):
        table.add_column(name)
    for name in preset_names():
        config = load_preset(name)
        hardware = config.runtime.hardware or "this machine"
        table.add_row(name, config.model.path or "its own", config.site_names, config.train.size(), hardware)
    console.print(table)


def show_settings(console: Console, config: PipelineConfig) -> None:
    """Every setting with value and meaning."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("setting", "value", "meaning"):
        table.add_column(name, overflow="fold")
    for name, value, meaning in _settings(config, ""):
        table.add_row(name, value, meaning)
    console.print(table, highlight=False)


def _settings(model: BaseModel, prefix: str) -> list[tuple[str, str, str]]:
    found = []
    for name, field in type(model).model_fields.items():
        value: Any = getattr(model, name)
        if isinstance(value, BaseModel):
            found += _settings(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, str(value), field.description or ""))
    return found
