"""One's own store over a shared one that is only read (SAEFLOW_BASE_STORE).

What is there already is Cached, what is made lies in one's own, and nothing is written to the shared one or removed.
Only what is committed shows through: leases and progress of others stay theirs.
"""

from pathlib import Path

from tasks.artifacts.files import Files


class Overlay:
    """The verbs of `own`; where it lacks a committed file, that of `base`."""

    def __init__(self, own: Files, base: Files) -> None:
        self.own, self.base = own, base
        self.url = own.url

    def read(self, path: str) -> bytes | None:
        found = self.own.read(path)
        return self.base.read(path) if found is None and _shows(path) else found

    def write(self, path: str, data: bytes) -> None:
        self.own.write(path, data)

    def create(self, path: str, data: bytes) -> bool:
        return not (_shows(path) and self.base.read(path) is not None) and self.own.create(path, data)

    def keep(self, source: Path, path: str) -> None:
        self.own.keep(source, path)

    def download(self, path: str, target: Path) -> None:
        (self.own if self._is_own(path) else self.base).download(path, target)

    def names(self, folder: str) -> list[str]:
        return sorted({*self.own.names(folder), *(self.base.names(folder) if _shows(folder) else ())})

    def folders(self, folder: str) -> list[str]:
        return sorted({*self.own.folders(folder), *self.base.folders(folder)})

    def remove(self, path: str) -> None:
        self.own.remove(path)

    def unfinished(self) -> list[str]:
        return self.own.unfinished()

    def local(self, path: str) -> Path | None:
        return (self.own if self._is_own(path) else self.base).local(path)

    def place(self, path: str) -> str:
        return (self.own if self._is_own(path) else self.base).place(path)

    def free_bytes(self) -> int | None:
        return self.own.free_bytes()

    def exists(self) -> bool:
        return self.own.exists() or self.base.exists()

    def check(self) -> None:
        self.own.check()

    def _is_own(self, path: str) -> bool:
        """Whether a file (or an attempt's folder) is to be looked for in one's own: it is there, or not in the base."""
        if not _shows(path):
            return True
        stage, key, _, attempt = (path.split("/") + [""] * 3)[:4]
        folder = f"{stage}/{key}/attempts/{attempt}"  # an attempt lies in one of both as a whole
        return not attempt or bool(self.own.names(folder)) or not self.base.names(folder)


def _shows(path: str) -> bool:
    """Whether a path of the shared store can be seen: /STAGE/KEY/progress is its owner's business."""
    return path.split("/")[2:3] != ["progress"]
