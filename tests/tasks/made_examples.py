"""An examples artifact made from rules, small enough to know every answer.

Latents: 0 fires on " cat"; 1 on whatever follows " of"; 2 on " cat" after " black" alone; 3 at random; 4 on " owl",
which is rare; 5 never. Rows of even number are the label half, odd ones the score half.
"""

import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts import Artifact, Spec, Stage, Store, Summary, Workspace

LATENTS = 6
TOKENS = [" cat", " dog", " of", " black", " the", "tab", "ular", " ran", " sat", "."]
EXCHANGED = {" cat": " dog", " dog": " cat"}
BEFORE, AFTER, MOST = 6, 3, 40


class MadeSpec(Spec):
    """What varies between made artifacts."""

    rows: int = 400
    seed: int = 0
    score_seed: int = 0  # another one changes rows of the score half only
    exchanged: bool = False  # in the score half " cat" and " dog" stand in each other's place, firings as they were


def activation(latent: int, tokens: list[str], place: int, dice: random.Random) -> float:
    """The rules; strengths vary so that there is a distribution."""
    token, previous = tokens[place], tokens[place - 1] if place else ""
    fires = [token == " cat", previous == " of", token == " cat" and previous == " black", dice.random() < 0.1,
             token == " owl", False]  # fmt: skip
    strength = dice.uniform(0.5, 4.0)
    return strength if fires[latent] else 0.0


def made_rows(spec: MadeSpec) -> list[dict[str, Any]]:
    """The columns of examples.parquet, sorted as the artifact is."""
    made: list[dict[str, Any]] = []
    texts = []
    for row in range(spec.rows):
        dice = random.Random(f"{spec.seed} {spec.score_seed if row % 2 else 0} {row}")
        texts.append([dice.choice([*TOKENS, *([" owl"] if row % 40 < 2 else [])]) for _ in range(16)])
    for latent in range(LATENTS):
        pools: dict[str, list[dict[str, Any]]] = {}
        for row, tokens in enumerate(texts):
            half = "score" if row % 2 else "label"
            dice = random.Random(f"{spec.seed} {spec.score_seed if row % 2 else 0} {latent} {row}")
            values = [activation(latent, tokens, place, dice) for place in range(len(tokens))]
            for place in dice.sample(range(len(tokens)), len(tokens)):
                shown = [EXCHANGED.get(token, token) for token in tokens] if spec.exchanged and row % 2 else tokens
                start, end = max(0, place - BEFORE), min(len(tokens), place + AFTER + 1)
                word = place - start - (tokens[place] == "ular" and tokens[place - 1 : place] == ["tab"])
                entry = {"latent": latent, "half": half, "row_id": row, "position": place,
                         "activation": values[place], "tokens": shown[start:end], "activations": values[start:end],
                         "hit": place - start, "word_start": word, "word_end": place - start + 1}  # fmt: skip
                if values[place] > 0:
                    pools.setdefault(f"{half}_positive", []).append(entry)
                    pools.setdefault("top", []).append(entry)
                else:
                    kind = "same_row" if any(values) else "random"
                    pools.setdefault(f"{half}_negative_{kind}", []).append(entry)
        for role in ("top", *(f"{half}_{kind}" for half in ("label", "score")
                              for kind in ("positive", "negative_same_row", "negative_random"))):  # fmt: skip
            pool = pools.get(role, [])
            random.Random(f"{role} {latent}").shuffle(pool)
            if role == "top":
                pool.sort(key=lambda entry: -entry["activation"])
            if pools.get(f"{role.partition('_')[0]}_positive") or role == "top":
                made += [{**entry, "role": role} for entry in pool[: MOST // 2 if "negative" in role else MOST]]
    return made


def make(spec: MadeSpec, out: Workspace) -> Summary:
    """Writes both tables."""
    rows = made_rows(spec)
    table = pa.Table.from_pylist(rows)
    role = table.column_names.index("role")
    table = table.set_column(role, "role", table["role"].dictionary_encode())
    pq.write_table(table, out.path / "examples.parquet")
    counts = [{"latent": n, "count": sum(r["latent"] == n and "positive" in r["role"] for r in rows),
               "score_count": sum(r["latent"] == n and r["role"] == "score_positive" for r in rows)}
              for n in range(LATENTS)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(counts), out.path / "features.parquet")
    return {"latents": LATENTS}


MADE = Stage("examples", version=1, spec=MadeSpec, run=make)


def made_examples(store: Store, **spec: Any) -> Artifact:
    """The artifact."""
    return MADE.build(store, MadeSpec(**spec)).artifact


def table(artifact: Artifact, name: str) -> list[dict[str, Any]]:
    """A data file's rows."""
    return pq.read_table(artifact.path(name)).to_pylist()
