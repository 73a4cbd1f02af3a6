"""Under which terms a model or a text may be used, as its card says: carried in the manifests of what is made from it.

    licence_in(folder)                              the card of a local model or text
    licence_on_hub("org/stories", commit, "dataset")

A card is a README.md that begins with YAML between lines of three dashes (Hugging Face's format); `license` there is an
identifier ("apache-2.0", "llama3.2") or a list of them, and "other" is explained by `license_name`.
"""

from pathlib import Path
from typing import Any, Literal

CARD = "README.md"
UNSTATED = "not stated"


def licence_in(folder: Path) -> str:
    """What the card in a folder says; "not stated" where there is none, or it does not say."""
    try:
        return _licence((folder / CARD).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return UNSTATED


def licence_on_hub(name: str, commit: str, kind: Literal["model", "dataset"]) -> str:
    """What the card at a commit says, from the hub or this machine's copy; a hub that is away is no error."""
    from huggingface_hub import hf_hub_download

    try:
        return licence_in(Path(hf_hub_download(name, CARD, repo_type=kind, revision=commit)).parent)
    except Exception:  # no card, no network, no right to read it: whatever the library raises
        return UNSTATED


def _licence(card: str) -> str:
    import yaml

    head, _, rest = card.partition("---\n")
    if head.strip():
        return UNSTATED
    try:
        found: Any = yaml.safe_load(rest.partition("\n---")[0])
    except yaml.YAMLError:
        return UNSTATED
    if not isinstance(found, dict):
        return UNSTATED
    said = found.get("license_name") if found.get("license") == "other" else None
    said = said or found.get("license") or UNSTATED
    return ", ".join(map(str, said)) if isinstance(said, list) else str(said)
