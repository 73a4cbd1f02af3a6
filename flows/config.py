"""The form people fill in: every stage's spec, composed; presets, `--set`, and the checks across stages.

    config = load_preset("demo")
    config = with_settings(config, ["train.k=16", "corpus.path=stories.txt"])

Imports no vendor: `saeflow plan` must answer at once.
"""

import difflib
import itertools
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flows.hardware import hardware
from tasks.archive import ArchiveSpec
from tasks.capture import CaptureSpec, depth
from tasks.corpus import CorpusSpec
from tasks.errors import InputError, SpecError
from tasks.evaluate import EvaluateSpec
from tasks.examples import ExamplesSpec
from tasks.label import LabelSpec
from tasks.model import ModelSpec
from tasks.preprocess import PreprocessSpec
from tasks.report import ReportSpec
from tasks.runtime import Runtime
from tasks.score import ScoreSpec
from tasks.settings import Settings
from tasks.train import TrainSpec


def _group(spec: type[BaseModel], position: int, description: str) -> Any:
    return Field(default_factory=spec, description=description, json_schema_extra={"position": position})


class PipelineConfig(BaseModel):
    """One run: what each stage computes (hashed) and how the run is carried out (`runtime`, never hashed)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field("custom", description="Name of the preset or of the run.", json_schema_extra={"position": 0})
    model: ModelSpec = _group(ModelSpec, 1, "The language model to look into.")
    corpus: CorpusSpec = _group(CorpusSpec, 2, "The text it reads.")
    capture: CaptureSpec = _group(CaptureSpec, 3, "Which activations are recorded.")
    archive: ArchiveSpec = _group(ArchiveSpec, 4, "How they are packed.")
    preprocess: PreprocessSpec = _group(PreprocessSpec, 5, "Shuffle and split.")
    train: TrainSpec = _group(TrainSpec, 6, "The sparse autoencoder and its training.")
    evaluate: EvaluateSpec = _group(EvaluateSpec, 7, "How good it is.")
    examples: ExamplesSpec = _group(ExamplesSpec, 8, "Where its latents fire.")
    labeller: Literal["auto", "claude", "keywords"] = Field(
        "auto",
        description="Who labels and scores: Claude, or keywords without a language model; auto: Claude with a key.",
        json_schema_extra={"position": 9},
    )
    claude_latents: int | None = Field(
        None, ge=1,
        description="Latents that Claude labels and scores, drawn at random; empty: label.max_latents. Keywords cost "
        "nothing and are not limited by it.",
        json_schema_extra={"position": 10},
    )  # fmt: skip
    label: LabelSpec = _group(LabelSpec, 11, "What its latents mean.")
    score: ScoreSpec = _group(ScoreSpec, 12, "Whether the labels are true.")
    report: ReportSpec = _group(ReportSpec, 13, "The page at the end.")
    runtime: Runtime = _group(Runtime, 14, "How it is run: workers, threads, budget. Changes no result's identity.")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.preprocess.site is not None and self.preprocess.site not in self.capture.sites:
            raise ValueError(
                f"preprocess.site is {self.preprocess.site!r}, but capture.sites records only "
                f"{', '.join(self.capture.sites)}; name one of these, or capture it too"
            )
        self._require_target()
        if self.runtime.hardware is not None:
            hardware(self.runtime.hardware)
        problem = self.runtime.cannot_share(self.train.batch_size)
        if problem:
            raise ValueError(problem)
        return self

    @property
    def site(self) -> str:
        """The site the autoencoder is trained on."""
        return self.preprocess.site or self.capture.sites[0]

    @property
    def target(self) -> str | None:
        """The site that a transcoder reconstructs; None: the autoencoder is none, or only one site is captured."""
        if self.preprocess.target is None and self.train.transcodes and len(self.capture.sites) > 1:
            return self.capture.sites[1]
        return self.preprocess.target

    @property
    def site_names(self) -> str:
        """What is read, and what a transcoder reconstructs from it, in words."""
        return f"{self.site} -> {self.target}" if self.target else self.site

    def _require_target(self) -> None:
        """Raises ValueError unless a transcoder, and nothing else, has a target that comes after its site."""
        target, site = self.target, self.site
        if not self.train.transcodes:
            if target is not None:
                raise ValueError(
                    f"preprocess.target is {target!r}, but train.architecture {self.train.architecture or 'topk'} "
                    "reconstructs the site that it reads; leave it out, or choose the architecture transcoder"
                )
            return
        if target is None:
            raise ValueError(
                f"the architecture transcoder needs a second site to reconstruct, but capture.sites records only "
                f"{site}; capture another too, such as capture.sites=[mlp_in.2, mlp_out.2]"
            )
        if target not in self.capture.sites:
            raise ValueError(
                f"preprocess.target is {target!r}, but capture.sites records only {', '.join(self.capture.sites)}; "
                "name one of these, or capture it too"
            )
        if depth(target) <= depth(site):
            raise ValueError(
                f"preprocess.target {target} does not come after preprocess.site {site} in the model, so that it "
                "cannot be reconstructed from it; exchange them, or choose another"
            )

    def title(self) -> str:
        """Model, site and size in a few words: names runs in the UI."""
        model = Path(self.model.path).name if self.model.path else "demo-model"
        return f"{self.name} {model} {self.site_names} {self.train.size()}"

    def resolved(self, settings: Settings) -> "PipelineConfig":
        """Fills in what depends on other stages or on the environment, so that keys say what really happens."""
        chosen = self.labeller
        if chosen == "auto":
            chosen = "claude" if settings.anthropic_api_key else "keywords"
        label = self.label.model_copy(update={"labeller": self.label.labeller or chosen})
        if label.labeller == "claude" and label.max_latents is None:
            label = label.model_copy(update={"max_latents": self.claude_latents})
        updates = {
            "preprocess": self.preprocess.model_copy(update={"site": self.site, "target": self.target}),
            "label": label,
            "score": self.score.model_copy(update={"scorer": self.score.scorer or chosen}),
            "runtime": self.runtime.resolved(settings),
        }
        return self.model_copy(update=updates)


def presets() -> list[str]:
    """Names of the presets that are shipped."""
    folder = files("deployments") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def load_preset(name: str, settings: Iterable[str] = ()) -> PipelineConfig:
    """A preset by name, or a YAML file by path, with `key=value` settings laid over it; InputError when unusable."""
    import yaml

    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"The configuration file {name!r} does not exist; give a file, or one of: {_listed()}.")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"The configuration file {name!r} cannot be read as UTF-8 text: {error}.") from error
    elif name in presets():
        text = (files("deployments") / "presets" / f"{name}.yaml").read_text()
    else:
        raise InputError(f"There is no preset {name!r}{nearest(name, presets())}; the presets are: {_listed()}.")
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        raise InputError(f"The configuration {name!r} is not valid YAML: {error}.") from error
    if not isinstance(values, dict):
        raise InputError(f"The configuration {name!r} is no mapping of settings; write it as `train: {{k: 16}}`.")
    values.setdefault("name", path.stem)
    return config_from(values, settings)


def config_from(values: dict[str, Any], settings: Iterable[str] = ()) -> PipelineConfig:
    """A configuration from plain values with `key=value` settings laid over them."""
    for setting in settings:
        _lay_over(values, setting)
    try:
        return PipelineConfig.model_validate(values)
    except ValidationError as error:
        raise SpecError(_one_message(error)) from error


def grid_points(config: PipelineConfig, axes: Iterable[str]) -> list[TrainSpec]:
    """Every combination of `key=value,value,...` axes laid over config.train, each once, the last axis fastest.

    Raises SpecError for an axis that is no setting of train, or a combination that cannot be trained.
    """
    points: dict[TrainSpec, None] = {}
    for combination in itertools.product(*map(_axis, axes)):
        values = config.model_dump(exclude_unset=True)
        for key, value in combination:
            _put(values, key, value)
        points[config_from(values).train] = None
    if any(point.transcodes != config.train.transcodes for point in points):
        raise SpecError(
            "--grid train.architecture takes the transcoder and others, but a sweep trains on one set of rows, and "
            "only a transcoder's have a target; sweep transcoders alone, with --set train.architecture=transcoder."
        )
    return list(points)


def _axis(text: str) -> list[tuple[str, Any]]:
    """`train.k=8,16` as the settings (train.k, 8) and (train.k, 16)."""
    key, equals, values = text.partition("=")
    if not equals or not values.strip():
        raise SpecError(f"--grid {text!r} has no values; write it as --grid train.k=8,16,32.")
    fields = {name: annotation for name, annotation in settable().items() if name.startswith("train.")}
    if key not in fields:
        raise SpecError(
            f"--grid {key!r} cannot vary{nearest(key, list(fields))}: a sweep trains on one set of rows, so only "
            "settings of train can; give the others with --set."
        )
    return [(key, value) for value in _list(f"--grid {key}", values, fields[key])]


def settable(model: type[BaseModel] = PipelineConfig, prefix: str = "") -> dict[str, Any]:
    """Every dotted name that `--set` takes, with the type of its field."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= settable(inner, f"{prefix}{name}.")
        else:
            found[prefix + name] = inner
    return found


def _lay_over(values: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals:
        raise SpecError(f"--set {setting!r} has no '='; write it as --set train.k=16.")
    fields = settable()
    if key not in fields:
        raise SpecError(
            f"--set {key!r} is not a setting{nearest(key, list(fields))}. `saeflow settings` lists them all."
        )
    _put(values, key, _value(f"--set {key}", text, fields[key]))


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *groups, name = key.split(".")
    for group in groups:
        inner = values.setdefault(group, {})
        if not isinstance(inner, dict):
            raise SpecError(
                f"The setting {key} changes a part of {group}, but the configuration gives {group} as {inner!r:.60}; "
                f"write it there as a mapping, such as `{group}: {{{name}: ...}}`."
            )
        values = inner
    values[name] = value


def _value(option: str, text: str, annotation: Any) -> Any:
    """What a text means for a field of that type: itself where the field is text, else YAML.

    YAML would make an alias of `*.txt`, 42798 of the revision 0123456 and False of a column named `no`. A text in
    quotes stands for what is between them, so that "null" can be said where null is None; a list may do without its
    brackets.
    """
    if get_origin(annotation) is tuple:
        bare = text.strip().removeprefix("[").removesuffix("]")
        return _list(option, bare, get_args(annotation)[0])
    if not _is_text(annotation):
        return _yaml(option, text, text)
    if text in ("", "null") and NoneType in get_args(annotation):
        return None
    return _yaml(option, text, text) if text[:1] in ("'", '"') and text[-1:] == text[:1] else text


def _list(option: str, text: str, annotation: Any) -> list[Any]:
    """The values of `a,b,c` for fields of that type; one with a comma in it stands in quotes, a list in brackets."""
    values = _yaml(option, text, f"[{text}]", every_scalar_is_text=_is_text(annotation))
    optional = NoneType in get_args(annotation)
    return [None if optional and value in ("", "null") else value for value in values]


def _is_text(annotation: Any) -> bool:
    """Whether a field holds text: str, a choice of words, or either or None."""
    if get_origin(annotation) in (Union, UnionType):
        return all(_is_text(part) for part in get_args(annotation) if part is not NoneType)
    if get_origin(annotation) is Literal:
        return all(isinstance(choice, str) for choice in get_args(annotation))
    return annotation is str


def _yaml(option: str, given: str, text: str, every_scalar_is_text: bool = False) -> Any:
    import yaml

    try:
        return yaml.load(text, yaml.BaseLoader if every_scalar_is_text else yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise SpecError(f"{option} has the value {given!r}, which is not readable as YAML: {reason}.") from error


def nearest(name: str, known: list[str]) -> str:
    """The hint " (did you mean ...?)" when something known is close, else nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:  # the right leaf under the wrong stage: "lr" or "training.lr" for "train.lr"
        leaf = name.rpartition(".")[2]
        close = [option for option in known if option.rpartition(".")[2] == leaf][:1]
    return f" (did you mean {close[0]!r}?)" if close else ""


def _listed() -> str:
    return ", ".join(presets())


def _one_message(error: ValidationError) -> str:
    """pydantic's findings as sentences, each with the setting's dotted name and the value that was given."""
    parts = []
    for finding in error.errors():
        where = ".".join(str(part) for part in finding["loc"])
        message = finding["msg"].removeprefix("Value error, ")
        if finding["type"] == "extra_forbidden":
            message = f"is not a setting{nearest(where, list(settable()))}"
        given = finding.get("input")
        if finding["type"] == "tuple_type":
            message = f"is a list; write it as [{given}]"
        value = f" (given: {given!r:.60})" if where and not isinstance(given, dict) else ""
        parts.append(f"{where} {message}{value}".strip())
    return "The configuration cannot be used: " + "; ".join(parts) + "."
