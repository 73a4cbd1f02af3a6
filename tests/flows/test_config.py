"""The composed configuration: presets, --set, checks across stages, what the environment decides."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from flows.config import PipelineConfig, config_from, grid_points, load_preset, presets, settable
from tasks.errors import InputError, SpecError
from tasks.settings import settings


@pytest.mark.parametrize("name", presets())
def test_every_preset_loads_under_its_own_name(name: str) -> None:
    assert load_preset(name).name == name


def test_the_deployments_of_the_demo_are_the_preset() -> None:
    deployments = yaml.safe_load((files("deployments") / "prefect.yaml").read_text())["deployments"]
    demo, sweep = (next(entry for entry in deployments if entry["name"] == name) for name in ("demo", "demo-sweep"))
    assert config_from(demo["parameters"]) == load_preset("demo")
    grid = sweep["parameters"].pop("grid")
    assert config_from(sweep["parameters"]) == load_preset("demo", ["claude_latents="])
    assert len(grid_points(load_preset("demo"), grid)) == 3


def test_a_setting_changes_one_value_and_keeps_the_rest() -> None:
    before, after = load_preset("demo"), load_preset("demo", ["train.k=3", "capture.sites=[attn_in.1]"])
    assert (after.train.k, after.capture.sites) == (3, ("attn_in.1",))
    assert after.model_copy(update={"train": before.train, "capture": before.capture}) == before


def test_every_setting_can_be_set_to_its_own_value() -> None:
    config = load_preset("demo")
    for key in settable():
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True)
        assert load_preset("demo", [f"{key}={text.removesuffix('...' + chr(10)).strip()}"]) == config


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("corpus.path=*.txt", "*.txt"),
        ("corpus.path=a: b #c", "a: b #c"),
        ("corpus.path='*.txt'", "*.txt"),
        ("corpus.path=", None),
        ("corpus.path=null", None),
        ("corpus.path='null'", "null"),
        ("model.revision=0123456", "0123456"),
        ("model.revision=1e10", "1e10"),
        ("corpus.column=no", "no"),
        ("corpus.column=null", "null"),
        ("capture.bos=none", "none"),
        ("train.lr=8e-3", 8e-3),
        ("train.lr=", None),
        ("capture.sites=resid_post.1", ("resid_post.1",)),
        ("capture.sites=resid_post.1,mlp_in.0", ("resid_post.1", "mlp_in.0")),
        ("capture.sites=[ resid_post.1, mlp_in.0 ]", ("resid_post.1", "mlp_in.0")),
    ],
)
def test_a_text_is_taken_as_it_stands_and_everything_else_as_yaml(setting: str, value: Any) -> None:
    group, name = setting.partition("=")[0].split(".")
    assert getattr(getattr(config_from({}, [setting]), group), name) == value


def test_values_of_a_grid_are_read_as_those_of_set() -> None:
    config = load_preset("demo", ["train.steps=7"])
    points = grid_points(config, ["train.schedule=cosine,'linear'", "train.steps=null,9", "train.lr=8e-3"])
    found = [(point.schedule, point.steps, point.lr) for point in points]
    assert found == [("cosine", None, 8e-3), ("cosine", 9, 8e-3), ("linear", None, 8e-3), ("linear", 9, 8e-3)]
    with pytest.raises(SpecError, match=r"--grid train\.k has the value '8,\{', which is not readable as YAML"):
        grid_points(config, ["train.k=8,{"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("trian.k=3", "did you mean 'train.k'"),
        ("training.lr=1", "did you mean 'train.lr'"),
        ("n_latents=9", "did you mean 'train.n_latents'"),
        ("train.k", "has no '='"),
        ("train.k=many", r"train\.k .*'many'"),
        ("train.k={", "not readable as YAML"),
        ("train.k=2026-13-45", "not readable as YAML"),
        ("capture.sites=[resid_post]", "resid_post"),
        ("train.k=100000", "100000"),
        ("preprocess.site=attn_in.0", "capture.sites records only"),
        ("runtime.train_workers=3", "cannot share equally"),
        ("runtime.train_micro_batch=300", "300, which does not divide a worker's share of 512"),
        ("train.architecture=relu", "train sparsity is empty"),
        ("train.prefixes=[16, 2048]", "the architecture topk does not use it"),
        ("train.architecture=transcoder", "capture.sites records only resid_post.1; capture another too"),
        ("preprocess.target=mlp_out.1", "'mlp_out.1', but train.architecture topk reconstructs the site that it reads"),
        ("capture.shard=1", r"'capture\.shard' is not a setting"),
        ("train.n_latents=99999999999999", "less than 2147483648"),
        ("runtime.ray_dashboard=bla", "'bla', which is no URL"),
        ("runtime.ray_dashboard=http://head:8265", "without ray_address"),
        *((f"{key}={2**32}", "less than 4294967296") for key in settable() if key.endswith("seed")),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_its_value(setting: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        load_preset("demo", [setting])
    assert "\n" not in str(caught.value)


TRANSCODER = ["train.architecture=transcoder", "capture.sites=mlp_in.1,mlp_out.1"]


def test_a_transcoder_reads_the_first_site_and_reconstructs_the_second() -> None:
    config = load_preset("demo", TRANSCODER)
    resolved = config.resolved(settings()).preprocess
    assert (resolved.site, resolved.target) == ("mlp_in.1", "mlp_out.1")
    assert config.title() == "demo demo-model mlp_in.1 -> mlp_out.1 transcoder n=2048 k=8"
    sites = ["capture.sites=mlp_out.1,resid_pre.1,mlp_in.1", "preprocess.site=mlp_in.1", "preprocess.target=mlp_out.1"]
    given = load_preset("demo", [*TRANSCODER, *sites])
    assert given.resolved(settings()).preprocess == resolved


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("capture.sites=mlp_out.1,mlp_in.1", "target mlp_in.1 does not come after preprocess.site mlp_out.1"),
        ("preprocess.target=mlp_in.1", "target mlp_in.1 does not come after preprocess.site mlp_in.1"),
        ("preprocess.target=mlp_out.2", "'mlp_out.2', but capture.sites records only mlp_in.1, mlp_out.1"),
        ("train.normalization=standardise_rows", "what a transcoder's input loses has no place in its output"),
    ],
)
def test_a_transcoder_that_cannot_be_is_refused(setting: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_preset("demo", [*TRANSCODER, setting])


def test_a_grid_does_not_mix_transcoders_with_what_has_no_target() -> None:
    for base in ([], TRANSCODER[1:]):
        with pytest.raises(SpecError, match=r"transcoder"):
            grid_points(load_preset("demo", base), ["train.architecture=topk,transcoder"])
    assert len(grid_points(load_preset("demo", TRANSCODER), ["train.k=4,8"])) == 2


def test_a_title_says_the_architecture_and_k_where_there_is_one() -> None:
    assert load_preset("demo").title() == "demo demo-model resid_post.1 n=2048 k=8"
    assert load_preset("demo", ["train.architecture=batch_topk"]).title().endswith("batch_topk n=2048 k=8")
    relu = load_preset("demo", ["train.architecture=relu", "train.normalization=scale"])
    assert relu.title().endswith("resid_post.1 relu n=2048")


def test_a_list_that_is_none_says_how_to_write_it() -> None:
    with pytest.raises(SpecError, match=r"capture\.sites is a list; write it as \[resid_post\.1\]"):
        config_from({"capture": {"sites": "resid_post.1"}})


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no preset 'dmeo' \(did you mean 'demo'\?\); the presets are: "):
        load_preset("dmeo")
    with pytest.raises(InputError, match="does not exist"):
        load_preset("nowhere.yaml")


def test_a_file_of_ones_own_is_a_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("train: {k: 5}\n")
    config = load_preset(str(file), ["train.n_latents=64"])
    assert (config.name, config.train.k, config.train.n_latents) == ("mine", 5, 64)
    file.write_text("train: [1, 2\n")
    with pytest.raises(InputError, match="not valid YAML"):
        load_preset(str(file))
    file.write_text("- a list\n")
    with pytest.raises(InputError, match="mapping"):
        load_preset(str(file))
    file.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(InputError, match="cannot be read as UTF-8 text"):
        load_preset(str(file))


@pytest.mark.parametrize(("text", "given"), [("train: 5", "5"), ("train:", "None"), ("train: [1]", r"\[1\]")])
def test_a_part_of_what_is_no_mapping_cannot_be_set(tmp_path: Path, text: str, given: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=f"train.k changes a part of train, .* gives train as {given}; write it"):
        load_preset(str(file), ["train.k=3"])


def test_who_labels_follows_the_key_unless_it_is_said() -> None:
    config = load_preset("demo")
    without, with_key = settings({}), settings({"ANTHROPIC_API_KEY": "sk-test"})
    assert config.resolved(without).label.labeller == config.resolved(without).score.scorer == "keywords"
    assert config.resolved(with_key).label.labeller == config.resolved(with_key).score.scorer == "claude"
    said = load_preset("demo", ["labeller=keywords"])
    assert said.resolved(with_key).label.labeller == "keywords"
    apart = load_preset("demo", ["labeller=keywords", "label.labeller=claude"])
    assert (apart.resolved(without).label.labeller, apart.resolved(without).score.scorer) == ("claude", "keywords")
    posted = PipelineConfig.model_validate(load_preset("demo", ["labeller=claude"]).model_dump())  # as a form does
    assert posted.resolved(without).label.labeller == posted.resolved(without).score.scorer == "claude"
    assert posted.resolved(without).runtime.wandb == "offline"
    assert posted.resolved(settings({"WANDB_MODE": "online"})).runtime.wandb == "online"


def test_only_claude_is_limited_to_the_latents_that_are_paid_for() -> None:
    config = load_preset("demo", ["claude_latents=7"])
    assert config.resolved(settings({})).label.max_latents is None
    assert config.resolved(settings({"ANTHROPIC_API_KEY": "sk-test"})).label.max_latents == 7
    said = load_preset("demo", ["claude_latents=7", "label.max_latents=9", "labeller=claude"])
    assert said.resolved(settings({})).label.max_latents == 9


def test_every_field_of_the_form_is_described_and_placed() -> None:
    for path, field in _fields(PipelineConfig):
        assert field.description, f"{path} has no description"
        assert "position" in (field.json_schema_extra or {}), f"{path} has no position"


def _fields(model: type[BaseModel], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, field in model.model_fields.items():
        found.append((prefix + name, field))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found += _fields(field.annotation, f"{prefix}{name}.")
    return found
