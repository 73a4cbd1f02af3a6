"""Tables as parquet, with a content digest of their values: parquet carries its writer's version.

    write_rows(rows, {"latent": "int32", "label": "string"}, "labels.parquet", out)          # a few named rows
    write_columns({"latent": numbers, "count": counts}, "coactivation.parquet", out)         # arrays of numpy or arrow
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

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


def write_columns(columns: Mapping[str, Any], name: str, out: "Workspace") -> None:
    """Writes columns of equal length, each what pyarrow makes an array of."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, meaning = pa.table(dict(columns)), hashlib.sha256()
    add_values(meaning, table)
    pq.write_table(table, out.path / name, compression="zstd")
    out.content(name, meaning.hexdigest())


def add_values(meaning: "hashlib._Hash", table: "pa.Table") -> None:
    """Takes the values of a table into a digest, free of what a parquet file says about the library that wrote it."""
    for batch in table.combine_chunks().to_batches():
        meaning.update(batch.serialize())
