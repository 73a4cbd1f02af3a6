"""Small tables of named rows as parquet, with a content digest of their values: parquet carries its writer's version.

    write_rows(rows, {"latent": "int32", "label": "string"}, "labels.parquet", out)
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.artifacts import Workspace


def write_rows(rows: Sequence[Any], types: Mapping[str, str], name: str, out: "Workspace") -> None:
    """Writes the rows' attributes as columns; types: int32, float32, string, or [string] for lists of strings."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"int32": pa.int32(), "float32": pa.float32(), "string": pa.string(), "[string]": pa.list_(pa.string())}
    columns = {column: pa.array([getattr(row, column) for row in rows], kinds[kind]) for column, kind in types.items()}
    pq.write_table(pa.table(columns), out.path / name, compression="zstd")
    values = [(column, types[column], columns[column].to_pylist()) for column in types]
    out.content(name, hashlib.sha256(json.dumps(values).encode()).hexdigest())
