"""The manifest: one JSON file per artifact, written last. Its existence is the commit; readers trust it alone."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasks.artifacts.key import canonical_json, group_digest, sha256_text
from tasks.errors import ArtifactError

SCHEMA = 1


class DataFile(BaseModel):
    """One data file of an artifact."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str  # relative to the attempt's folder, with forward slashes
    size: int  # bytes
    sha256: str  # of the raw bytes: verifies what is read
    content: str | None = None  # sha256 of what the file means, where an encoder adds noise; enters the digest instead

    @property
    def identity(self) -> str:
        """What enters the artifact's digest."""
        return self.content or self.sha256


class InputReference(BaseModel):
    """Names the exact attempt that was read as an input."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    key: str
    attempt: str
    digest: str


class Manifest(BaseModel):
    """All that is known of one artifact. `made` holds times, host and versions: advice, never hashed."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    schema_version: int = Field(SCHEMA, alias="schema")
    stage: str
    version: int
    key: str
    attempt: str
    digest: str
    spec: dict[str, Any]
    inputs: dict[str, list[InputReference] | InputReference]
    outside: dict[str, Any] | None = None
    files: list[DataFile]
    summary: dict[str, Any]
    made: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of all data files."""
        return sum(file.size for file in self.files)

    def file(self, path: str) -> DataFile:
        """The entry of one data file; ArtifactError names the files there are."""
        for entry in self.files:
            if entry.path == path:
                return entry
        names = ", ".join(entry.path for entry in self.files[:12]) or "none"
        raise ArtifactError(f"The {self.stage} artifact {self.key[:12]} has no file {path!r}; it has: {names}.")

    def references(self) -> list[InputReference]:
        """Every attempt this artifact was made from."""
        return references_in(self.inputs)

    def input_digests(self) -> dict[str, str]:
        """Digest per input name, as it entered the key."""
        return {
            name: group_digest([part.digest for part in value]) if isinstance(value, list) else value.digest
            for name, value in self.inputs.items()
        }

    def to_json(self) -> str:
        """The text that is written: indented, for people who open it; a summary keeps its stage's order."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=1)


def references_in(inputs: Mapping[str, list[InputReference] | InputReference]) -> list[InputReference]:
    """All references of some inputs, by name or in a list, in their order."""
    groups = [value if isinstance(value, list) else [value] for value in inputs.values()]
    return [reference for group in groups for reference in group]


def content_digest(files: list[DataFile]) -> str:
    """Digest of an artifact: sha256 over its sorted (path, content digest) pairs."""
    return sha256_text(canonical_json(sorted([file.path, file.identity] for file in files)))


def read_manifest(text: str | bytes, where: str) -> Manifest:
    """Parses and checks a manifest; ArtifactError when it is torn, foreign, or its digest is not its files'."""
    remedy = "Remove the file, or run the stage again with --force."
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        reason = ": ".join([*map(str, first["loc"][:1]), first["msg"]])
        raise ArtifactError(f"The manifest {where} cannot be read ({reason}). {remedy}") from error
    if manifest.schema_version != SCHEMA:
        raise ArtifactError(
            f"The manifest {where} has schema {manifest.schema_version}, this saeflow reads {SCHEMA}. "
            "Use the saeflow version that wrote it, or another store."
        )
    if content_digest(manifest.files) != manifest.digest:
        raise ArtifactError(f"The manifest {where} does not match its own digest: it was altered. {remedy}")
    return manifest
