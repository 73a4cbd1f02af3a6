"""The command line as a person meets it: it teaches, it answers at once, and mistakes come back as one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import main
from tests.flows.commands import saeflow
from tests.servers.message_batches import MessageBatches

HEAVY = ("prefect", "ray", "torch", "transformers", "anthropic", "datasets", "pyarrow", "wandb")


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = saeflow(capsys, "--help")
    assert code == 0
    for word in ("run", "plan", "status", "verify", "gc", "lineage", "ui", "doctor", "presets", "settings"):
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
        (["lineage", "cafe"], "No artifact"),
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
    code, out, error = saeflow(capsys, "run", "demo", "--store", s3_url)
    assert code == 1 and "AWS_SECRET_ACCESS_KEY" in error
    assert "planted-secret" not in out + error


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


def test_an_empty_store_is_shown_and_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
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
