"""Stages and their artifacts: keys, manifests, stores, workspaces. The rest of the house stands on these rules."""

from tasks.artifacts.artifact import Artifact, Summary
from tasks.artifacts.key import Spec, canonical_json, group_digest, stage_key
from tasks.artifacts.manifest import DataFile, InputReference, Manifest
from tasks.artifacts.stage import Built, Stage
from tasks.artifacts.store import Store, open_store
from tasks.artifacts.workspace import Progress, Workspace

__all__ = [
    "Artifact",
    "Built",
    "DataFile",
    "InputReference",
    "Manifest",
    "Progress",
    "Spec",
    "Stage",
    "Store",
    "Summary",
    "Workspace",
    "canonical_json",
    "group_digest",
    "open_store",
    "stage_key",
]
