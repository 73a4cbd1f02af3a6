"""What a run will need, reckoned before it starts: tokens, bytes, training FLOP, Claude dollars.

Rough on purpose and said so: tokens come from the corpus artifact when there is one, else from file sizes at
4 bytes a token; a bf16 activation takes 2 bytes a dimension; the archive keeps 0.7 of it (measured on residual
streams); a dense TopK step costs 12 B n d FLOP, as for any pair of matmuls with their gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flows.config import PipelineConfig
from flows.planner import Planned
from tasks.label import label_dollars
from tasks.model import describe_model
from tasks.score import score_dollars
from tasks.train import TrainSpec

BYTES_PER_TOKEN = 4.0
ARCHIVED_SHARE = 0.7
DEMO_TEXT_BYTES = 2_000_000
FLOAT_BYTES = 4
CHECKPOINT_WEIGHTS = 3  # a checkpoint holds the weights and AdamW's two moments of each


@dataclass(frozen=True)
class Estimate:
    """Figures of a whole run. Bytes are what the store ends up holding; None where nothing is known yet."""

    tokens: int | None
    train_tokens: int | None  # those that are not held out
    captured_bytes: int | None
    archived_bytes: int | None
    shuffled_bytes: int | None
    training_flop: float | None
    trained_bytes: int | None  # the autoencoder's weights (a sweep's: of all points), and a checkpoint of the largest
    dollars: dict[str, float]  # upper bound for Claude, of label and of score; 0 with keywords

    def still_needed_bytes(self, planned: list[Planned]) -> int:
        """Free space for what is not Cached; the shuffle keeps its partitions beside its output."""
        sizes = {
            "capture": self.captured_bytes, "archive": self.archived_bytes,
            "preprocess": 2 * (self.shuffled_bytes or 0), "train": self.trained_bytes,
        }  # fmt: skip
        needed = 0
        for stage, size in sizes.items():
            states = [entry.state != "Cached" for entry in planned if entry.stage == stage]
            needed += (size or 0) * sum(states) // max(1, len(states))
        return needed


def estimate(config: PipelineConfig, planned: list[Planned], points: Sequence[TrainSpec] = ()) -> Estimate:
    """Reckons from the configuration (and a sweep's points) and what is committed already."""
    described = describe_model(config.model)
    tokens = _tokens(config, planned)
    d_model = described.d_model if described else None
    latents = config.train.n_latents
    labelled = min(latents, config.label.max_latents or latents)
    dollars = {"label": label_dollars(config.label, labelled), "score": score_dollars(config.score, labelled)}
    if points:  # a sweep labels nothing
        dollars = dict.fromkeys(dollars, 0.0)
    flop = trained = None
    train_tokens = None if tokens is None else int(tokens * (1 - config.preprocess.validation_fraction))
    if d_model is not None:
        trainings = points or [config.train]
        flop = sum(
            12.0 * train.batch_size * train.number_of_steps(train_tokens or 0) * train.n_latents * d_model
            for train in trainings
        )
        weights = [2 * train.n_latents * d_model * FLOAT_BYTES for train in trainings]
        trained = sum(weights) + CHECKPOINT_WEIGHTS * max(weights)
    if tokens is None or d_model is None:
        return Estimate(tokens, train_tokens, None, None, None, flop, trained, dollars)
    one_site = tokens * d_model * 2
    captured = one_site * len(config.capture.sites)
    shuffled = one_site * (2 if config.target else 1)
    return Estimate(
        tokens, train_tokens, captured, int(captured * ARCHIVED_SHARE), shuffled, flop, trained, dollars
    )


def _tokens(config: PipelineConfig, planned: list[Planned]) -> int | None:
    captures = [entry.manifest for entry in planned if entry.stage == "capture"]
    if captures and all(captures):
        return sum(manifest.summary.get("tokens", 0) for manifest in captures if manifest)
    corpus = next((entry for entry in planned if entry.stage == "corpus"), None)
    if corpus is not None and corpus.manifest is not None and "bytes" in corpus.manifest.summary:
        return int(corpus.manifest.summary["bytes"] / BYTES_PER_TOKEN)
    if config.corpus.path is None:
        tokens = int(DEMO_TEXT_BYTES / BYTES_PER_TOKEN)
    else:
        outside = corpus.outside if corpus is not None else None
        files = (outside or {}).get("files", [])
        size = sum(file.get("size") or 0 for file in files)  # a data set on the hub does not say it
        tokens = int(size / BYTES_PER_TOKEN) or config.runtime.expected_tokens or 0
    if config.corpus.max_rows is not None and tokens:
        tokens = min(tokens, config.corpus.max_rows * config.capture.max_tokens)
    return tokens or None
