"""What makes a stage's work "the same work as before": the rules of hashing, in one place.

    key = sha256(canonical JSON of {stage, version, spec, inputs: {name: digest}, outside})

What is computed is hashed (the spec); how it is run (`Runtime`) never is. Keys follow the digests of inputs, so a
stage that is run again with the same result disturbs nothing after it. `outside` pins what lives outside the store.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.errors import SpecError


class Spec(BaseModel):
    """What a stage computes: frozen settings, each described; all of them are hashed into the stage's key.

    A field added later starts as None, and None is left out of the hash: old artifacts stay valid.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def hashed(self) -> dict[str, Any]:
        """The fields as they enter the key: plain JSON values, None left out at every depth."""
        return _without_none(self.model_dump(mode="python"))


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII. Raises SpecError for what has no stable form."""
    _refuse_unstable(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def stage_key(
    stage: str,
    version: int,
    spec: Mapping[str, Any],
    inputs: Mapping[str, str],
    outside: Mapping[str, Any] | None = None,
) -> str:
    """The key of one piece of work: 64 hex digits. `inputs` maps each input's name to its artifact digest."""
    identity = {"stage": stage, "version": version, "spec": dict(spec), "inputs": dict(inputs)}
    if outside is not None:
        identity["outside"] = dict(outside)
    return sha256_text(canonical_json(identity))


def sha256_text(text: str) -> str:
    """sha256 of a text's UTF-8 bytes, as 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def group_digest(digests: list[str]) -> str:
    """Digest of an ordered list of artifacts (the shards of a stage): sha256 over their digests in order."""
    return sha256_text(canonical_json(digests))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value]
    return value


def _refuse_unstable(value: Any, where: str) -> None:
    """JSON values only: a set has no order, a float NaN no equality, an object no text that survives a release."""
    if value is None or isinstance(value, str | bool | int):
        return
    if isinstance(value, float):
        if not math.isfinite(value):
            raise SpecError(f"{where} is {value}, which has no stable JSON form; use a finite number or None.")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _refuse_unstable(item, f"{where}[{position}]")
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if not isinstance(name, str):
                raise SpecError(f"{where} has the key {name!r}, which is no string; JSON objects need string keys.")
            _refuse_unstable(item, f"{where}.{name}")
    else:
        raise SpecError(
            f"{where} is a {type(value).__name__} ({value!r:.80}), which has no stable form to hash; "
            "use str, int, float, bool, None, lists or dicts of them (a path as str, a set as a sorted list)."
        )
