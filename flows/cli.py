"""The command line. `saeflow --help` teaches; every command ends with code 0, or 1 and one sentence."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tasks.errors import SaeflowError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False,
    help="""From a language model and a pile of text to a labelled sparse autoencoder, as one resumable pipeline.

**Start here:** `saeflow run demo` runs the whole way here in minutes; run it again and nothing is done twice.

**Before a long run:** `saeflow doctor` checks the machine, `saeflow plan PRESET` says what would run and why, and what
it needs. **After a crash:** the same `saeflow run` command goes on where it stopped.""",
)  # fmt: skip

Preset = Annotated[str, typer.Argument(help="A preset (see `saeflow presets`) or a YAML file of your own.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as train.k=16 (list: `saeflow settings`)."),
]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="URL", envvar="SAEFLOW_STORE", help="Where artifacts live: a folder (./saeflow-store) or s3://..."
    ),
]
Force = Annotated[
    list[str] | None, typer.Option("--force", metavar="STAGE", help="Make this stage again although it is there.")
]

JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write what happened to each stage as JSON.")
]
GRID = typer.Option(
    "--grid", metavar="KEY=V,V,...", help="Values of a setting of train, such as train.k=8,16; all combinations."
)


@app.command()
def run(
    preset: Preset,
    set_: Sets = None,
    store: StoreUrl = None,
    force: Force = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="STAGE", help="Build this stage alone, on artifacts that are there.")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Run the pipeline; stages whose work is done are Cached. Ctrl-C stops cleanly, the same command goes on."""
    from flows.dag import STAGES
    from flows.running import run_here

    run_here(preset, set_ or [], store, _stages(force or [], STAGES), _stage(only, STAGES) if only else None, json_file)


@app.command()
def sweep(
    preset: Preset,
    grid: Annotated[list[str], GRID],
    set_: Sets = None,
    store: StoreUrl = None,
    force: Force = None,
    json_file: JsonFile = None,
) -> None:
    """Train an autoencoder for each point of a grid on the same rows, and draw their Pareto fronts."""
    from flows.dag import SWEEP_STAGES
    from flows.running import sweep_here

    sweep_here(preset, set_ or [], grid, store, _stages(force or [], SWEEP_STAGES), json_file)


@app.command()
def plan(
    preset: Preset,
    set_: Sets = None,
    grid: Annotated[list[str] | None, GRID] = None,
    store: StoreUrl = None,
    force: Force = None,
) -> None:
    """Say what a run (with --grid: a sweep) would do and need, and why it would be refused; runs nothing."""
    from flows.config import grid_points, load_preset
    from flows.dag import STAGES, SWEEP_STAGES
    from flows.planner import plan as make_plan
    from flows.preflight import judge, lacking_here
    from flows.show import show_plan
    from tasks.artifacts import open_store
    from tasks.settings import settings

    now = settings()
    config = load_preset(preset, set_ or []).resolved(now)
    place = open_store(store or now.store)
    points = grid_points(config, grid) if grid else []
    forced = _stages(force or [], SWEEP_STAGES if grid else STAGES)
    planned = make_plan(config, place, forced, points)
    console = Console()
    show_plan(console, config, planned, place, points)
    judge(config, place, planned, points)
    lacking = lacking_here(config, place, planned, points)
    if lacking is not None:
        console.print(f"note  a run from here would end at once: {lacking}", highlight=False, soft_wrap=True)


@app.command()
def status(store: StoreUrl = None) -> None:
    """List what the store holds, stage by stage, and what is unfinished."""
    from flows.show import show_status

    show_status(Console(), _open(store))


@app.command()
def lineage(
    artifact: Annotated[str, typer.Argument(help="A stage (its newest), or the first characters of a key or digest.")],
    store: StoreUrl = None,
) -> None:
    """Show from what an artifact was made, back to the model and the text."""
    from flows.show import show_lineage, tell_unreadable
    from tasks.artifacts.maintenance import find

    place, console = _open(store), Console()
    show_lineage(console, place, find(place, artifact, tell_unreadable(console)).manifest)


@app.command()
def diff(
    first: Annotated[str, typer.Argument(help="A stage (its newest), or the first characters of a key or digest.")],
    second: Annotated[str, typer.Argument(help="The same, of the other.")],
    store: StoreUrl = None,
) -> None:
    """Compare two results back to the text: which settings differ, and what came out."""
    from flows.show import show_difference, tell_unreadable
    from tasks.artifacts.maintenance import find

    place, console = _open(store), Console()
    found = [find(place, name, tell_unreadable(console)).manifest for name in (first, second)]
    show_difference(console, place, *found)


@app.command()
def verify(store: StoreUrl = None) -> None:
    """Read every file of every artifact and compare size and sha256 with its manifest."""
    from rich.progress import track

    from tasks.artifacts.maintenance import damaged

    place, console = _open(store, own=True), Console()
    count = bad = 0
    for name, faults in track(damaged(place), "verifying", console=console, disable=not console.is_terminal):
        count += 1
        bad += bool(faults)
        for fault in faults:
            console.print(f"[red]{name}[/]: {fault}", soft_wrap=True)
    console.print(f"{count} artifacts read, {bad} damaged.")
    if bad:
        raise typer.Exit(1)


@app.command()
def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Really remove; without it nothing is touched.")] = False,
    retain: Annotated[
        list[str] | None,
        typer.Option("--retain", metavar="STAGE=DAYS", help="Also let go what this stage made, where for so many days "
                     "nothing was made from it; it is made again when it is wanted. May be repeated."),
    ] = None,
    store: StoreUrl = None,
) -> None:
    """List (with --yes: remove) what no artifact needs: superseded and abandoned attempts, stale progress."""
    from flows.dag import STAGES, SWEEP_STAGES
    from flows.show import tell_unreadable
    from tasks.artifacts.maintenance import collect, garbage
    from tasks.artifacts.retention import expired, parse_rules

    rules = parse_rules(retain or [], STAGES | SWEEP_STAGES)
    place, console = _open(store, own=True), Console()
    found = garbage(place, tell_unreadable(console)) + expired(place, rules)
    for entry in found:
        console.print(f"{entry.path}  [dim]{entry.why}[/]", soft_wrap=True)
    if not found:
        console.print("Nothing to remove.")
    elif yes:
        collect(place, found)
        console.print(f"{len(found)} removed.")
    else:
        console.print(f"{len(found)} could be removed; run it with --yes to do so.")


@app.command()
def migrate(store: StoreUrl = None) -> None:
    """Bring a store that an older saeflow made to the format of this one; may be stopped and run again."""
    from tasks.artifacts.format import FORMAT
    from tasks.artifacts.migration import migrate as steps

    place, console = _open(store, own=True), Console()
    reached = list(steps(place))
    console.print(f"{place.url} {'has now' if reached else 'has already'} format {FORMAT}.", soft_wrap=True)


@app.command()
def doctor(store: StoreUrl = None) -> None:
    """Check versions, ports, space and credentials, in seconds."""
    from flows.doctor import examine
    from tasks.settings import settings

    console, well = Console(), True
    for finding in examine(store or settings().store):
        well &= finding.well is not False
        mark = {True: "[green]ok[/]  ", False: "[red]bad[/] ", None: "[yellow]note[/]"}[finding.well]
        console.print(f"{mark} {finding.name:<22} {finding.text}", soft_wrap=True, highlight=False)
    if not well:
        raise typer.Exit(1)


@app.command()
def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the Prefect server on this machine.")] = 4200,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    store: StoreUrl = None,
) -> None:
    """Start a Prefect server with a worker, deploy the presets, and open the page. Ctrl-C ends all of it."""
    from flows.ui import serve
    from tasks.settings import settings

    serve(port, browser, store or settings().store)


@app.command()
def cancel(
    run: Annotated[
        str | None, typer.Argument(help="A run's name, a part of it, or the first characters of its id.")
    ] = None,
) -> None:
    """Cancel a run on the Prefect server and wait until its jobs are stopped; without a name, the only one there is."""
    from flows.cancel import cancel_run

    cancel_run(run)


@app.command()
def deploy(
    pool: Annotated[str, typer.Option(help="Name of the work pool to make or bring up to date.")] = "saeflow",
    kind: Annotated[str, typer.Option("--type", help="process (workers on your machines) or kubernetes.")] = "process",
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VARIABLE=BLOCK", help="Give runs this environment variable from a Secret block of the server."
        ),
    ] = None,
) -> None:
    """Send every preset and stage, a nightly schedule and crash recovery to the Prefect server of PREFECT_API_URL."""
    from flows.deploy import deploy as send_all

    send_all(pool, kind, secret or [])


@app.command()
def presets() -> None:
    """List the presets."""
    from flows.show import show_presets

    show_presets(Console())


@app.command("settings")
def settings_command(
    preset: Annotated[str, typer.Argument(help="Whose values to show.")] = "demo", set_: Sets = None
) -> None:
    """List every setting with its value and its meaning."""
    from flows.config import load_preset
    from flows.show import show_settings

    show_settings(Console(), load_preset(preset, set_ or []))


def main() -> None:
    """Entry point: an error made on purpose is one sentence; anything else is a bug and shows its traceback."""
    try:
        app()
    except SaeflowError as error:
        Console(stderr=True).print(f"Error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)


def _open(url: str | None, own: bool = False) -> Any:
    """A store that is there: what only looks must not take a mistyped name for a new one. `own`: without its base."""
    from tasks.artifacts.store import open_store, own_store
    from tasks.errors import StoreError
    from tasks.settings import settings

    store = (own_store if own else open_store)(url or settings().store)
    if not store.files.exists():
        raise StoreError(f"There is no store at {store.url}; check --store (the first saeflow run makes one).")
    return store


def _stages(names: list[str], known: Iterable[str]) -> frozenset[str]:
    return frozenset(_stage(name, known) for name in names)


def _stage(name: str, known: Iterable[str]) -> str:
    from flows.config import nearest
    from tasks.errors import InputError

    stages = list(known)
    if name not in stages:
        raise InputError(f"There is no stage {name!r}{nearest(name, stages)}; the stages are: {', '.join(stages)}.")
    return name
