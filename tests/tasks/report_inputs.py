"""The report's nine inputs as committed artifacts of a small made-up run, in the formats of the real stages."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts import Spec, Stage
from tasks.examples.table import COLUMNS

HOSTILE = "</script><img src=http://example.invalid/x onerror=window.broken=1>"


class GivenSpec(Spec):
    """Files that are given, told apart by what they hold."""

    content: str


def given(store, name, files, summary=None):
    """An artifact of stage `name` that holds these files: bytes, JSON values, or columns of a parquet table."""

    def run(spec, out):
        for file, content in files.items():
            if isinstance(content, bytes):
                (out.path / file).write_bytes(content)
            elif file.endswith(".parquet"):
                pq.write_table(pa.table(content), out.path / file)
            else:
                (out.path / file).write_text(json.dumps(content))
        return summary or {}

    content = hashlib.sha256(repr((sorted(files.items()), summary)).encode()).hexdigest()
    return Stage(name, version=1, spec=GivenSpec, run=run).build(store, GivenSpec(content=content)).artifact


def example(latent, role, row, tokens, hit, activation, word=None):
    word_start, word_end = word or (hit, hit + 1)
    activations = [0.0] * len(tokens)
    activations[hit] = activation
    half = "score" if row % 2 else "label"
    return dict(
        zip(
            COLUMNS,
            (latent, role, half, row, hit, activation, tokens, activations, hit, word_start, word_end),
            strict=True,
        )
    )


def report_inputs(store, latents=40, target=None, **architecture):
    """Latents 0..n-1 with falling scores; the last is dead, the one before it has too few examples; 3 is hostile."""
    last = latents - 1
    alive = [latent != last for latent in range(latents)]
    scored = [latent < last - 1 for latent in range(latents)]
    scores = [0.95 - 0.4 * latent / latents if ok else None for latent, ok in enumerate(scored)]
    labels = [f"words about topic {latent}" if ok else None for latent, ok in enumerate(alive)]
    labels[3:4] = [HOSTILE] * len(labels[3:4])
    examples = []
    for latent in range(last):
        words = [" a", f" word{latent}", " sub", "word", "\n", " end"]
        examples.append(example(latent, "top", 1, words, 3, 4.0 + latent, word=(2, 4)))
        examples.append(example(latent, "top", 2, [HOSTILE, " and", HOSTILE], 0, 3.0))
        examples.append(example(latent, "label_positive", 2, [" é", " 漢", "字 "], 1, 1.5))
        examples.append(example(latent, "score_positive", 3, [" never", " shown", " here"], 1, 1.5))
    nothing = {"latent": pa.array(range(latents), pa.int32())}
    features = nothing | {
        "firing_rate": [0.5 / (latent + 1) if ok else 0.0 for latent, ok in enumerate(alive)],
        "count": [1000 if ok else 0 for ok in alive],
        "score_count": [500 if ok else 0 for ok in alive],
        "max": pa.array([4.0 + latent if ok else 0.0 for latent, ok in enumerate(alive)], pa.float32()),
        "mean": pa.array([1.0 if ok else 0.0 for ok in alive], pa.float32()),
        "neighbours": [[(latent + step) % max(last, 1) for step in (1, 2)] for latent in range(latents)],
        "neighbour_cosines": [[0.9, 0.8]] * latents,
        "promoted": [[" up", HOSTILE]] * latents,
        "promoted_effects": [[2.0, 1.0]] * latents,
        "suppressed": [[" down", "\n"]] * latents,
        "suppressed_effects": [[-2.0, -1.0]] * latents,
    }
    columns = {name: [row[name] for row in examples] for name in COLUMNS}
    columns["role"] = pa.array(columns["role"], pa.string()).dictionary_encode()
    config = {"schema": 1, "sae": {"d_in": 8, "n_latents": latents, "k": 2, "normalization": "none"} | architecture}
    metadata = {"site": "resid_post.1"} | ({"target": target} if target else {})
    history = {"step": list(range(50)), "loss": [100 / (step + 1) for step in range(50)], "fvu": [0.5] * 49 + [None]}
    spread = {"low": [s and s - 0.05 for s in scores], "high": [s and s + 0.05 for s in scores]}
    status = ["scored" if ok else "too few" for ok in scored]
    source = "/somewhere/<img src=x onerror=window.broken=1>"
    return {
        "model": given(store, "model", {"config.json": {}}, {"source": source, "layers": 2}),
        "corpus": given(store, "corpus", {"rows.json": []}, {"rows": 4, "documents": 2}),
        "archives": [given(store, "archive", {"shard.tar.gz": b""})],
        "rows": given(store, "preprocess", {"index.json": {}}),
        "sae": given(
            store,
            "train",
            {"cfg.json": config | {"metadata": metadata}, "history.parquet": history},
            {"steps": 50},
        ),
        "metrics": given(
            store, "evaluate", {"metrics.json": {"fvu": {"value": 0.0931, "low": 0.09, "high": 0.1}, "l0": 2.0}}
        ),
        "examples": given(
            store, "examples", {"features.parquet": features, "examples.parquet": columns}, {"tokens": 12345}
        ),
        "labels": given(
            store,
            "label",
            {"labels.parquet": nothing | {"label": labels, "certainty": [0.5] * latents}},
            {"labeller": "keywords", "why": "no language model was asked"},
        ),
        "scores": given(
            store,
            "score",
            {
                "scores.parquet": nothing
                | {"status": status, "score": scores, "baseline": [s and 0.7 for s in scores]}
                | spread
            },
        ),
    }
