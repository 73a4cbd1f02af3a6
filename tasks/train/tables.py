"""The tables that a training leaves beside its autoencoder, and what their columns are.

history.parquet, one row per log_every steps: step, tokens and the trainer's figures; no wall times. About
    20 rows also have validation_fvu and validation_l0, of held-out rows.
latents.parquet, one row per latent, of the whole training: firings (tokens on which it fired), first_fired_tokens,
    last_fired_tokens and last_died_tokens (tokens seen by then, in whole steps; null: never), deaths, revivals, and
    dead (at the end). `sae_core.tracking` says what a death is.
"""

import hashlib
import json
from typing import TYPE_CHECKING

from tasks.artifacts import Workspace
from tasks.row_table import write_columns

if TYPE_CHECKING:
    from sae_core import TrainerConfig
    from tasks.train.progress import Checkpoint, History

COUNTS = ("step", "tokens", "deaths", "revivals")
FIGURES = (
    "step", "tokens", "loss", "fvu", "auxiliary", "l0", "l0_ema", "dead_share_sixteenth", "dead_share_quarter",
    "dead_share", "never_fired_share", "deaths", "revivals", "lr",
)  # fmt: skip
SOME_HAVE = ("sparsity", "validation_fvu", "validation_l0")


def write_history(history: "History", out: Workspace) -> None:
    """Writes history.parquet, with columns of what only some trainings have."""
    import pyarrow
    from pyarrow import parquet

    names = [*FIGURES, *(name for name in SOME_HAVE if any(name in row for row in history))]
    kinds = {name: pyarrow.int64() if name in COUNTS else pyarrow.float64() for name in names}
    table = pyarrow.Table.from_pylist(history, schema=pyarrow.schema(list(kinds.items())))
    parquet.write_table(table, out.path / "history.parquet")
    canonical = json.dumps(history, sort_keys=True).encode()
    out.content("history.parquet", hashlib.sha256(canonical).hexdigest())


def write_latents(checkpoint: "Checkpoint", n_latents: int, config: "TrainerConfig", out: Workspace) -> None:
    """Writes latents.parquet from the counters in the last checkpoint."""
    import numpy as np
    import pyarrow

    from sae_core.tracking import Tracking

    tracking = Tracking(n_latents, batch_size=config.batch_size, dead_after_rows=config.dead_after_rows)
    for name, tensor in tracking.tensors().items():
        tensor.copy_(checkpoint.tensors[name])
    lives = tracking.lives(checkpoint.step)

    def moments(rows: np.ndarray) -> pyarrow.Array:
        return pyarrow.array(rows, mask=rows < 0)

    columns = {
        "latent": np.arange(n_latents, dtype=np.int32),
        "firings": lives.firings_N.numpy(),
        "first_fired_tokens": moments(lives.first_fired_N.numpy()),
        "last_fired_tokens": moments(lives.last_fired_N.numpy()),
        "deaths": lives.deaths_N.numpy(),
        "revivals": lives.revivals_N.numpy(),
        "last_died_tokens": moments(lives.last_died_N.numpy()),
        "dead": lives.dead_N.numpy(),
    }
    write_columns(columns, "latents.parquet", out)
