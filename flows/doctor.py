"""`saeflow doctor`: what a run will meet on this machine, each finding in one line, in seconds."""

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.server import find_server, healthy
from tasks.artifacts import open_store
from tasks.errors import SaeflowError
from tasks.folders import nearest_existing, why_not_writable
from tasks.settings import settings

# Combinations that install cleanly and then fail: seen, not guessed.
TOO_NEW = {"fastapi": (0, 151), "sqlalchemy": (2, 1), "prefect": (3, 9)}
PACKAGES = ("prefect", "ray", "torch", "transformers", "anthropic", "fastapi", "sqlalchemy", "s3fs", "pyarrow", "wandb")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: True is well, False must be mended, None is worth knowing."""

    name: str
    well: bool | None
    text: str


def examine(store_url: str) -> Iterator[Finding]:
    """All findings, one by one, so that a slow one does not hide the others."""
    now = settings()
    new_enough = sys.version_info >= (3, 11)
    yield Finding("python", new_enough, platform.python_version() + ("" if new_enough else ": 3.11 or newer is needed"))
    yield from _packages()
    yield _machine()
    yield _store(store_url)
    yield _folder("cache", "SAEFLOW_CACHE", now.cache)
    yield _folder("scratch", "SAEFLOW_SCRATCH", now.scratch)
    yield _loopback()
    server = find_server(now)
    if now.prefect_api_url and server is not None:
        yield _server(server)
    else:
        yield Finding("prefect server", None, server or "none: a run starts a temporary one (saeflow ui keeps one)")
    key = now.anthropic_api_key
    yield Finding(
        "claude", None, "ANTHROPIC_API_KEY is set" if key else "no ANTHROPIC_API_KEY: labels come from keywords alone"
    )
    yield Finding("wandb", None, f"{now.wandb} (SAEFLOW_WANDB)")


def _packages() -> Iterator[Finding]:
    for name in PACKAGES:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, False, "is not installed; run make install")
            continue
        limit = TOO_NEW.get(name)
        numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
        if limit and numbers >= limit:
            yield Finding(name, False, f"{version} is known to fail here; install below {'.'.join(map(str, limit))}")
        else:
            yield Finding(name, True, version)


def _machine() -> Finding:
    import psutil

    memory = psutil.virtual_memory().available / 1e9
    text = f"{os.cpu_count()} CPUs, {memory:.0f} GB of memory free"
    gpus = shutil.which("nvidia-smi")
    return Finding("machine", memory > 4, text + (", NVIDIA driver found" if gpus else ", no GPU"))


def _store(url: str) -> Finding:
    try:
        store = open_store(url)
        store.check()
    except SaeflowError as error:
        return Finding("store", False, str(error))
    free = store.files.free_bytes()
    space = "" if free is None else f", {free / 1e9:.0f} GB free"
    return Finding("store", True, f"{store.url}{space}, can be written")


def _folder(name: str, variable: str, folder: Path) -> Finding:
    reason = why_not_writable(folder)
    if reason is not None:
        return Finding(name, False, f"{folder}: {reason}; set {variable} to another folder")
    free = shutil.disk_usage(nearest_existing(folder)).free
    return Finding(name, True, f"{folder}, {free / 1e9:.0f} GB free")


def _loopback() -> Finding:
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
    except OSError as error:
        return Finding("loopback ports", False, f"no port can be opened on 127.0.0.1: {error}")
    return Finding("loopback ports", True, "can be opened on 127.0.0.1")


def _server(url: str) -> Finding:
    well = healthy(url)
    return Finding("prefect server", well, f"{url} (PREFECT_API_URL)" + ("" if well else " does not answer"))
