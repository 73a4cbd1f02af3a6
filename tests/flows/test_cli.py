"""The command line as a person meets it: it teaches, it answers at once, and mistakes come back as one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import main
from tasks.artifacts import open_store
from tests.flows.commands import saeflow
from tests.flows.made_runs import demo, fill
from tests.servers.message_batches import MessageBatches

HEAVY = ("prefect", "ray", "torch", "transformers", "anthropic", "datasets", "pyarrow", "wandb")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = saeflow(capsys, "--help")
    assert code == 0
    words = "run plan status diff lineage verify gc doctor ui deploy cancel presets settings"
    for word in words.split():
        assert word in out


def test_plan_answers_without_loading_what_is_slow(tmp_path: Path) -> None:
    script = "import sys; from flows.cli import app; "
    script += f"app(['plan', 'demo', '--store', {str(tmp_path)!r}], standalone_mode=False); "
    script += f"sys.exit(' '.join(name for name in {HEAVY!r} if name in sys.modules) or None)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, f"plan imported {done.stderr}"
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line}
    assert "will run" in lines["model"] and "not made yet" in lines["model"]
    assert "depends" in lines["train"] and "rows must be made first" in lines["train"]
    assert "tokens" in lines["needs"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "dmeo"], "did you mean 'demo'"),
        (["run", "demo", "--set", "trian.k=1"], "did you mean 'train.k'"),
        (["run", "demo", "--force", "trane"], "did you mean 'train'"),
        (["run", "demo", "--only", "reports"], "did you mean 'report'"),
        (["run", "demo", "--set", "model.path=/nowhere/model"], "/nowhere/model"),
        (["run", "demo", "--set", "corpus.path=/nowhere/text.txt"], "/nowhere/text.txt"),
        (["run", "demo", "--set", "capture.sites=[resid_post.99]"], "layers"),
        (["run", "demo", "--set", "train.k=999999"], "999999"),
        (["run", "demo", "--store", "/proc/no-store"], "/proc/no-store"),
        (["run", "demo", "--store", "nonsense://x/y"], "nonsense"),
        (["run", "demo", "--store", "~nobodyx/foo"], "~nobodyx/foo"),
        (["run", "demo", "--store", "s3://"], "names no bucket"),
        (["run", "demo", "--only", "report"], "report needs the artifact of model"),
        (["run", "demo", "--json", "/nowhere/x.json"], "--json /nowhere/x.json cannot be written"),
        (["run", "demo", "--json", "/etc"], "--json /etc cannot be written"),
        (["sweep", "demo", "--grid", "train.k=1,2", "--json", "/etc"], "--json /etc cannot be written"),
        (["sweep", "demo", "--grid", "train.k=1,2", "--set", "capture.sites=[resid_post.3]"], "3 layers"),
        (["plan", "demo", "--set", "capture.sites=[resid_post.99]"], "layers"),
        (["plan", "demo", "--store", "/etc/passwd"], "/etc/passwd is no folder"),
        (["plan", "demo", "--store", "/proc/no-store"], "/proc/no-store"),
        (["status", "--store", "/nowhere"], "There is no store at /nowhere"),
        (["status", "--store", "/etc/passwd"], "There is no store at /etc/passwd"),
        (["verify", "--store", "/nowhere"], "There is no store at /nowhere"),
        (["gc"], "There is no store"),
        (["lineage", "train"], "There is no store"),
        (["plan", "nothing"], "demo"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_code(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, error = saeflow(capsys, *arguments)
    assert code == 1
    assert error.startswith("Error: ") and said in error
    assert "Traceback" not in error
    assert not list((tmp_path / "saeflow-store").rglob("manifest.json"))


def test_a_dead_s3_endpoint_and_a_wrong_key_are_told_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    code, out, error = saeflow(capsys, "run", "demo", "--store", "s3://bucket/store")
    assert code == 1 and "AWS_ENDPOINT_URL" in error
    assert "planted-secret" not in out + error


@pytest.mark.s3
def test_a_wrong_s3_key_is_told_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, s3_url: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    for arguments in (["run", "demo"], ["plan", "demo"], ["status"]):
        code, out, error = saeflow(capsys, *arguments, "--store", s3_url)
        assert code == 1 and "AWS_SECRET_ACCESS_KEY" in error, arguments
        assert "planted-secret" not in out + error


@pytest.mark.s3
def test_a_bucket_that_holds_nothing_is_no_store_to_look_at(capsys: pytest.CaptureFixture[str], s3_url: str) -> None:
    code, _, error = saeflow(capsys, "verify", "--store", s3_url)
    assert code == 1 and f"There is no store at {s3_url}" in error
    assert saeflow(capsys, "plan", "demo", "--store", s3_url)[0] == 0


def test_a_refused_claude_key_and_a_budget_too_small_are_told_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with MessageBatches({"key": "the right one"}) as service:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", service.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "planted-secret")
        code, out, error = saeflow(capsys, "run", "demo", "--set", "runtime.budget_dollars=1")
        assert code == 1 and "runtime.budget_dollars" in error and "label.max_latents=" in error
        code, out, error = saeflow(capsys, "run", "demo")  # the preset asks for as much as the usual budget pays
        assert code == 1 and "ANTHROPIC_API_KEY" in error
        assert "planted-secret" not in out + error
        assert not service.created()


def test_plan_ends_with_the_verdict_and_makes_no_store(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    settings = ("--set", f"corpus.path={tmp_path / 'empty.txt'}")
    code, out, error = saeflow(capsys, "plan", "demo", *settings)
    assert code == 1 and "will run" in out and "holds not one byte" in error
    assert saeflow(capsys, "plan", "demo")[0] == 0
    assert not (tmp_path / "saeflow-store").exists()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "nonsense"])
def test_a_dead_prefect_server_is_told_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", url)
    code, _, error = saeflow(capsys, "run", "demo")
    assert code == 1 and error.startswith(f"Error: No Prefect server answers at PREFECT_API_URL {url}")
    assert f"{url} (PREFECT_API_URL) does not answer" in saeflow(capsys, "doctor")[1]


def test_folders_of_the_environment_that_cannot_be_written_are_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A text.")
    monkeypatch.setenv("SAEFLOW_CACHE", "/etc/passwd/x")
    for arguments in (["run", "demo"], ["ui", "--no-browser"], ["plan", "demo", "--set", f"corpus.path={text}"]):
        code, _, error = saeflow(capsys, *arguments)
        assert code == 1 and "SAEFLOW_CACHE" in error and "/etc/passwd/x" in error
    code, out, _ = saeflow(capsys, "doctor")
    assert code == 1
    bad = [line.split()[1] for line in out.splitlines() if line.startswith("bad")]
    assert bad == ["cache", "scratch"]


def test_a_port_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, error = saeflow(capsys, "ui", "--port", "99999999")
    assert code == 2 and "65535" in error


def test_a_torn_manifest_ends_no_command_that_looks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = fill(open_store(str(tmp_path / "saeflow-store")), demo())
    folder = tmp_path / "saeflow-store" / "corpus" / made["corpus"].key
    (folder / "manifest.json").write_text("{")
    (folder / "attempts" / "foreign.owner").write_text("{")
    named = f"corpus {made['corpus'].key[:12]}"
    for command in (["status"], ["gc"], ["lineage", made["train"].digest[:12]]):
        code, out, _ = saeflow(capsys, *command)
        assert code == 0 and f"{named}: The manifest" in out, command
    code, out, _ = saeflow(capsys, "verify")
    assert code == 1 and named in out and "13 artifacts read, 1 damaged" in out
    shards = ("--set", "capture.shards=2")
    code, _, error = saeflow(capsys, "plan", "demo", *shards)
    assert code == 1 and "--force" in error and "(1 errors)" not in error
    code, out, _ = saeflow(capsys, "plan", "demo", *shards, "--force", "corpus")
    assert code == 0 and "asked for by --force" in out


def test_an_empty_store_is_shown_and_needs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "saeflow-store").mkdir()
    code, _, error = saeflow(capsys, "lineage", "cafe")
    assert code == 1 and "No artifact" in error
    assert "no artifact yet" in saeflow(capsys, "status")[1]
    assert "0 artifacts read, 0 damaged" in saeflow(capsys, "verify")[1]
    assert "Nothing to remove" in saeflow(capsys, "gc")[1]


def test_doctor_finds_this_machine_well(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = saeflow(capsys, "doctor")
    assert code == 0
    assert "torch" in out and "loopback" in out and "no ANTHROPIC_API_KEY" in out


def test_doctor_says_what_must_be_mended(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = saeflow(capsys, "doctor", "--store", "/proc/no-store")
    assert code == 1
    assert "bad" in out and "/proc/no-store" in out


def test_settings_lists_every_setting_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    from flows.config import settable

    out = "".join(saeflow(capsys, "settings")[1].split())
    assert all(key in out for key in settable())


def test_main_is_the_installed_command() -> None:
    command = Path(sys.executable).with_name("saeflow")
    assert main.__module__ == "flows.cli"
    done = subprocess.run([str(command), "presets"], capture_output=True, text=True)
    assert done.returncode == 0 and "demo" in done.stdout, json.dumps(done.stderr)
