"""Where a store's bytes lie: a local folder or object storage, behind the same few verbs.

Paths are relative to the store's root, with forward slashes. A small write is whole or not there: locally by rename,
remotely because an object appears only when its upload is complete. Large files are written where `local` says, or
elsewhere and then uploaded; nobody looks at them before a manifest names them.
"""

import contextlib
import errno
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from tasks.artifacts.faults import said
from tasks.errors import StoreError
from tasks.folders import files_below, home_expanded, nearest_existing, why_not_writable
from tasks.settings import refuse_credentials

TEMPORARY = ".tmp-"  # names of unfinished local writes start so; they are never listed
S3 = ("s3://", "s3a://")
UNFINISHED_SECONDS = 3600.0  # a small file is written in far less: what is older has lost its writer


class Files(Protocol):
    """The verbs a store needs."""

    url: str

    def read(self, path: str) -> bytes | None:
        """The bytes of a small file, or None when there is none."""

    def write(self, path: str, data: bytes) -> None:
        """Writes or replaces a small file in one step."""

    def create(self, path: str, data: bytes) -> bool:
        """Writes a small file unless one is there; False when one is. Exclusive where the store can be."""

    def keep(self, source: Path, path: str) -> None:
        """Makes a large file durable under its path: uploads it, or has it on the disk where `local` let it lie."""

    def download(self, path: str, target: Path) -> None:
        """Copies a stored file to a local path."""

    def names(self, folder: str) -> list[str]:
        """All files below a folder, as paths relative to it, sorted."""

    def folders(self, folder: str) -> list[str]:
        """Names of the folders directly below a folder, sorted."""

    def remove(self, path: str) -> None:
        """Removes a file, or a folder with all below it; nothing happens when there is none."""

    def unfinished(self) -> list[str]:
        """Paths of small writes that were begun long ago and never ended, sorted."""

    def local(self, path: str) -> Path | None:
        """The local path of a stored file where there is one, else None."""

    def place(self, path: str) -> str:
        """Where a stored file or folder lies, for people and links."""

    def free_bytes(self) -> int | None:
        """Bytes that can still be stored; None where the store does not say."""

    def exists(self) -> bool:
        """Whether there is such a store; a folder that a first run would make does not count."""

    def check(self) -> None:
        """Raises StoreError when nothing can be stored. Leaves nothing behind, and makes no folder that stays."""


class LocalFiles:
    """A folder. Writes are fsynced and renamed, so a power cut leaves the old file or the new one."""

    def __init__(self, root: Path) -> None:
        self.root = home_expanded(root, "--store").absolute()
        self.url = str(self.root)

    def read(self, path: str) -> bytes | None:
        try:
            return (self.root / path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PermissionError as error:
            raise StoreError(f"The store file {self.root / path} cannot be read: {error.strerror}.") from error

    def write(self, path: str, data: bytes) -> None:
        with self._temporary(path, data) as (temporary, target):
            temporary.replace(target)

    def create(self, path: str, data: bytes) -> bool:
        with self._temporary(path, data) as (temporary, target):
            try:
                os.link(temporary, target)  # fails when the target exists: the atomic test-and-set of a file system
            except FileExistsError:
                return False
        return True

    def keep(self, source: Path, path: str) -> None:
        fsync(self.root / path)

    def download(self, path: str, target: Path) -> None:
        shutil.copyfile(self.root / path, target)

    def names(self, folder: str) -> list[str]:
        base = self.root / folder
        found = (file for file in files_below(base) if not file.name.startswith(TEMPORARY))
        return sorted(file.relative_to(base).as_posix() for file in found)

    def folders(self, folder: str) -> list[str]:
        base = self.root / folder
        try:
            return sorted(entry.name for entry in base.iterdir() if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove(self, path: str) -> None:
        target = self.root / path
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)

    def unfinished(self) -> list[str]:
        before, found = time.time() - UNFINISHED_SECONDS, []
        for file in files_below(self.root):
            with contextlib.suppress(FileNotFoundError):
                if file.name.startswith(TEMPORARY) and file.stat().st_mtime < before:
                    found.append(file.relative_to(self.root).as_posix())
        return sorted(found)

    def local(self, path: str) -> Path | None:
        return self.root / path

    def place(self, path: str) -> str:
        return f"{self.url}/{path}"

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(nearest_existing(self.root)).free

    def exists(self) -> bool:
        return self.root.is_dir()

    def check(self) -> None:
        reason = why_not_writable(self.root)
        if reason is not None:
            raise StoreError(
                f"Nothing can be stored at {self.root}: {reason}. Choose another --store, or mend its permissions."
            )

    @contextlib.contextmanager
    def _temporary(self, path: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        target = self.root / path
        temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        with said(self.url):
            _make_folder(target.parent)
            try:
                temporary.write_bytes(data)
                fsync(temporary)
                yield temporary, target
                fsync(target.parent)
            finally:
                temporary.unlink(missing_ok=True)


class RemoteFiles:
    """Object storage through fsspec. Credentials come from the environment, never from the URL or a pickle."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with said(self.url):
            self.fs, self.root = _filesystem(self.url)
        # s3fs asks for the size before it reads in parallel pieces: one request more for each small file.
        self._small = {"max_concurrency": 1} if self.url.startswith(S3) else {}
        self._bucket_seen = False

    def read(self, path: str) -> bytes | None:
        with said(self.url):
            try:
                return bytes(self.fs.cat_file(self._at(path), **self._small))
            except FileNotFoundError:
                self._require_bucket()
                return None

    def write(self, path: str, data: bytes) -> None:
        with said(self.url, writing=True):
            self.fs.pipe_file(self._at(path), data)

    def create(self, path: str, data: bytes) -> bool:
        with said(self.url, writing=True):
            if self.fs.exists(self._at(path)):
                return False
            try:
                self.fs.pipe_file(self._at(path), data, mode="create")
            except OSError as error:
                refused = isinstance(error, FileExistsError) or error.errno == errno.EINVAL
                if not refused and "PreconditionFailed" not in str(error):
                    raise
                # Our own write may have won although its answer was lost: what is stored decides.
                return bool(self.fs.cat_file(self._at(path)) == data)
            return True

    def keep(self, source: Path, path: str) -> None:
        with said(self.url, writing=True):
            self.fs.put_file(str(source), self._at(path))
            stored = self.fs.info(self._at(path))["size"]
        if stored != source.stat().st_size:
            raise StoreError(
                f"{self.url}/{path} holds {stored} bytes after the upload of {source.stat().st_size}; "
                "run the same command again."
            )

    def download(self, path: str, target: Path) -> None:
        with said(self.url):
            self.fs.get_file(self._at(path), str(target))

    def names(self, folder: str) -> list[str]:
        with said(self.url):
            base = self._at(folder)
            return sorted(str(name)[len(base) + 1 :] for name in self.fs.find(base) if len(str(name)) > len(base))

    def folders(self, folder: str) -> list[str]:
        with said(self.url):
            try:
                entries = self.fs.ls(self._at(folder), detail=True)
            except FileNotFoundError:
                self._require_bucket()
                return []
        return sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory")

    def remove(self, path: str) -> None:
        with said(self.url), contextlib.suppress(FileNotFoundError):
            self.fs.rm(self._at(path), recursive=True)

    def unfinished(self) -> list[str]:
        return []

    def local(self, path: str) -> Path | None:
        return None

    def place(self, path: str) -> str:
        return f"{self.url}/{path}"

    def free_bytes(self) -> int | None:
        return None

    def exists(self) -> bool:
        with said(self.url):
            return bool(self.fs.exists(self.root))

    def check(self) -> None:
        probe, data = f".probe-{uuid.uuid4().hex}", b"saeflow"
        self.write(probe, data)
        if self.read(probe) != data:
            raise StoreError(f"The store {self.url} does not give back what was written to it; choose another --store.")
        self.remove(probe)

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")

    def _require_bucket(self) -> None:
        """A missing bucket looks like a missing file; only the second is normal."""
        bucket = self.root.split("/")[0]
        self._bucket_seen = self._bucket_seen or self.fs.exists(bucket)
        if not self._bucket_seen:
            raise StoreError(f"The bucket {bucket!r} of store {self.url} does not exist; create it, or check --store.")


def open_files(url: str) -> Files:
    """The backend for a store URL: a path or file:// is local, anything else goes through fsspec."""
    refuse_credentials(url, "The store's URL")
    if "://" not in url or url.startswith("file://"):
        return LocalFiles(Path(url.removeprefix("file://")))
    if url.startswith(S3) and not url.partition("://")[2].strip("/"):
        raise StoreError(f"The store URL {url!r} names no bucket; give s3://bucket or s3://bucket/prefix.")
    return RemoteFiles(url)


def _make_folder(folder: Path) -> None:
    """Makes a folder of a local store; what is in the way (a file, a pseudo file system) is told."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        raise StoreError(
            f"The store folder {folder} cannot be made ({error.strerror}); choose another --store."
        ) from error


def fsync(path: Path) -> None:
    """Forces a file's (or folder's) bytes onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    # Stale listings have been seen to hide fresh objects; a dead endpoint must be told in seconds, not minutes.
    options: dict[str, Any] = {"use_listings_cache": False}
    if url.startswith(S3):
        options["config_kwargs"] = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 3}}
    fs, root = fsspec.core.url_to_fs(url, **options)
    return fs, str(root).rstrip("/")
