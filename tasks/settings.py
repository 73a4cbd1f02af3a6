"""The only reader of the environment: where things are kept and which services are at hand.

Nothing here is ever hashed into a key. Secrets stay `SecretStr`: they print as stars and enter no file.

    SAEFLOW_STORE      where artifacts live: a folder or s3://bucket/prefix    (default ./saeflow-store)
    SAEFLOW_BASE_STORE a shared store that is only read: what it holds is Cached, what is made lies in the other
    SAEFLOW_CACHE      small state and downloaded copies                       (default ~/.cache/saeflow)
    SAEFLOW_SCRATCH    temporary files of running stages, as large as a shard  (default <cache>/scratch)
    SAEFLOW_WANDB      online, offline or disabled                             (default WANDB_MODE, else offline)
    ANTHROPIC_API_KEY, ANTHROPIC_BASE_URL    the labelling service
    SAEFLOW_NOTIFY_URL a webhook (Slack's, or any that takes JSON) told of the end of runs
    SAEFLOW_RAY_ADDRESS, SAEFLOW_RAY_DASHBOARD    the Ray cluster of this place, where runtime.ray_address is left empty
    PREFECT_API_URL    a Prefect server to report to; without it a temporary one
    AWS_*              S3 credentials and endpoint (AWS_ENDPOINT_URL), read by the S3 library itself
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

from pydantic import BaseModel, ConfigDict, SecretStr

from tasks.errors import InputError
from tasks.folders import home_expanded

# Addresses that are printed, and kept in manifests or by Prefect
ADDRESSES = (
    "SAEFLOW_STORE", "SAEFLOW_BASE_STORE", "SAEFLOW_RAY_DASHBOARD", "ANTHROPIC_BASE_URL", "PREFECT_API_URL",
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3",
)  # fmt: skip
WandbMode = Literal["online", "offline", "disabled"]


class Settings(BaseModel):
    """What the environment says at the moment `settings()` is called."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    base_store: str | None
    cache: Path
    scratch: Path
    wandb: WandbMode
    anthropic_api_key: SecretStr | None
    anthropic_base_url: str | None
    notify_url: SecretStr | None
    ray_address: str | None
    ray_dashboard: str | None
    prefect_api_url: str | None
    s3_endpoint: str | None


def settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Reads the environment (or the mapping given by a test). Empty variables count as absent."""
    given = {name: value for name, value in (os.environ if environment is None else environment).items() if value}
    cache = Path(given.get("SAEFLOW_CACHE") or Path(given.get("XDG_CACHE_HOME", "~/.cache")) / "saeflow")
    cache = home_expanded(cache, "SAEFLOW_CACHE")
    wandb = given.get("SAEFLOW_WANDB", given.get("WANDB_MODE", "offline"))
    if wandb not in ("online", "offline", "disabled"):
        raise InputError(f"SAEFLOW_WANDB (or WANDB_MODE) is {wandb!r}; set it to online, offline or disabled.")
    for name in ADDRESSES:
        refuse_credentials(given.get(name, ""), name)
    if given.get("SAEFLOW_RAY_DASHBOARD") and not is_url(given["SAEFLOW_RAY_DASHBOARD"]):
        raise InputError(
            f"SAEFLOW_RAY_DASHBOARD is {given['SAEFLOW_RAY_DASHBOARD']!r}, which is no URL; write it as http://head:8265."
        )
    key, notify = given.get("ANTHROPIC_API_KEY"), given.get("SAEFLOW_NOTIFY_URL")
    return Settings(
        store=given.get("SAEFLOW_STORE", "saeflow-store"),
        base_store=given.get("SAEFLOW_BASE_STORE"),
        cache=cache,
        scratch=home_expanded(Path(given.get("SAEFLOW_SCRATCH", cache / "scratch")), "SAEFLOW_SCRATCH"),
        wandb=cast(WandbMode, wandb),
        anthropic_api_key=SecretStr(key) if key else None,
        anthropic_base_url=given.get("ANTHROPIC_BASE_URL"),
        notify_url=SecretStr(notify) if notify else None,
        ray_address=given.get("SAEFLOW_RAY_ADDRESS"),
        ray_dashboard=given.get("SAEFLOW_RAY_DASHBOARD"),
        prefect_api_url=given.get("PREFECT_API_URL"),
        s3_endpoint=given.get("AWS_ENDPOINT_URL_S3", given.get("AWS_ENDPOINT_URL")),
    )


def is_url(text: str) -> bool:
    """Whether a text begins as the address of a web server does."""
    return re.match(r"https?://[^/:\s]", text) is not None


def refuse_credentials(address: str, what: str) -> None:
    """Raises InputError for an address with a name or a password in it, without repeating it."""
    if re.match(r"[a-z0-9+.-]+://[^/]*@", address):
        raise InputError(
            f"{what} has a user name or a password in it (before the @); addresses are printed and kept. Take it out, "
            "and put secrets into variables of their own (AWS_*, ANTHROPIC_API_KEY, PREFECT_API_AUTH_STRING, "
            "RAY_AUTH_TOKEN_PATH)."
        )
