"""The published systems as presets: complete, and planned where neither hub nor weights are at hand."""

import subprocess

import pytest

from flows.config import load_preset, presets
from tasks.settings import settings
from tests.integration.commands import command

PUBLISHED = ("llama-3.1-8b-chat", "llama-3.2-1b-chat", "llama-3.2-3b-sentences", "llama-3.3-70b-chat")


def test_all_systems_are_there() -> None:
    assert presets() == ["demo", *PUBLISHED]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_says_what_it_is_and_can_be_planned_anywhere(name: str, tmp_path) -> None:
    config = load_preset(name).resolved(settings({}))
    assert config.name == name and config.label.labeller == "claude"
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "COLUMNS": "160"}
    done = subprocess.run(
        command("plan", name, "--store", str(tmp_path / "store")), capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert f"note  a run from here would end at once: '{config.model.path}' is no local path" in done.stdout
    assert f"on {config.runtime.hardware}: " in done.stdout and "Claude at most $" in done.stdout


def test_sentences_carry_the_published_figures() -> None:
    train = load_preset("llama-3.2-3b-sentences").train
    found = train.trainer_config(rows=648_375_000, d_in=3072)
    assert found.steps == 791_474 and found.warmup_steps == 0
    assert found.lr * found.floor == pytest.approx(1e-5)
    assert found.dead_after_rows == 80_000 * found.batch_size
    assert train.sae_config(3072).normalization == "standardise_rows"


@pytest.mark.parametrize("name", ["llama-3.1-8b-chat", "llama-3.3-70b-chat", "llama-3.2-1b-chat"])
def test_chats_carry_the_settings_of_april_2024(name: str) -> None:
    train = load_preset(name).train
    found, sae = train.trainer_config(rows=532_000_000, d_in=4096), train.sae_config(4096)
    assert (found.lr, found.beta1, found.beta2, found.clip_norm) == (5e-5, 0.9, 0.999, 1.0)
    assert found.sparsity_warmup_steps == round(0.05 * found.steps) and found.decay_share == 0.2 and found.floor == 0
    assert sae.architecture == "relu" and sae.normalization == "scale" and not sae.pre_bias
