"""wandb as a view of a training: it shows, history.parquet is the truth, and its absence or outage stops nothing.

    view = View("offline", key, config, cache)       # returns at once; wandb starts in a thread of its own
    view.log({"step": 10, "fvu": 0.1})
    view.close()
"""

import logging
import queue
import threading
from pathlib import Path
from typing import Any

from tasks.settings import WandbMode

CLOSE_SECONDS = 20.0  # for wandb to write what it has; a service that is down may not hold the training up longer
START_SECONDS = 60.0
Row = dict[str, Any]


class View:
    """One wandb run, or nothing where wandb is disabled or does not answer."""

    def __init__(self, mode: WandbMode, key: str, config: dict[str, Any], cache: Path) -> None:
        self._rows: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._show, args=(mode, key, config, cache / "wandb"), daemon=True)
        if mode != "disabled":
            self._thread.start()

    def log(self, row: Row) -> None:
        """Shows one row of the history at its step."""
        if self._thread.is_alive():
            self._rows.put(dict(row))

    def close(self) -> None:
        """Waits, not for ever, until wandb has taken everything."""
        self._rows.put(None)
        if self._thread.is_alive():
            self._thread.join(CLOSE_SECONDS)

    def _show(self, mode: WandbMode, key: str, config: dict[str, Any], folder: Path) -> None:
        try:
            import wandb

            folder.mkdir(parents=True, exist_ok=True)
            run = wandb.init(
                project="saeflow",
                id=key[:16],  # a resumed training is the same run; offline it is one more folder of the same id
                name=f"train {key[:8]}",
                mode=mode,
                resume="allow" if mode == "online" else None,
                dir=folder,
                config=config,
                settings=wandb.Settings(
                    console="off", silent=True, init_timeout=START_SECONDS, x_disable_stats=True, disable_git=True
                ),
            )
            while (row := self._rows.get()) is not None:
                run.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])
            run.finish()
        except Exception as error:
            logging.getLogger(__name__).warning("wandb is left out: %s", error)
