"""How a run is carried out: workers, threads, devices, budgets. Never hashed: it may change between a run and its
resumption without making anything stale (what changes bits belongs into a stage's Spec instead)."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.settings import Settings, is_url, refuse_credentials


class Runtime(BaseModel):
    """How to run: recorded in each manifest as advice, part of no key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ray_address: str | None = Field(
        None, title="Ray address",
        description="Ray cluster to use (host:port or auto); empty: SAEFLOW_RAY_ADDRESS, else a local one.",
        json_schema_extra={"position": 0},
    )
    ray_dashboard: str | None = Field(
        None, title="Ray dashboard URL", description="Jobs API of that cluster, such as http://head:8265.",
        json_schema_extra={"position": 1},
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", title="Device", description="Where models run; auto takes a GPU when the cluster has one.",
        json_schema_extra={"position": 2},
    )
    window: int = Field(
        4, ge=1, title="Shards in flight", description="Captured shards on disk at once: peak space = this x a shard.",
        json_schema_extra={"position": 3},
    )
    capture_workers: int = Field(
        2, ge=1, title="Capture workers", description="Ray actors that each hold the model once.",
        json_schema_extra={"position": 4},
    )
    capture_threads: int = Field(
        1, ge=1, title="Threads per capture worker", description="CPU threads of one capture worker.",
        json_schema_extra={"position": 5},
    )
    train_workers: int = Field(
        2, ge=1, title="Training workers", description="Ranks of data-parallel training; must divide the batch size.",
        json_schema_extra={"position": 6},
    )
    train_threads: int = Field(
        1, ge=1, title="Threads per training worker", description="CPU threads of one rank.",
        json_schema_extra={"position": 7},
    )
    train_micro_batch: int | None = Field(
        None,
        ge=1,
        title="Training micro-batch",
        description="Tokens of a rank whose dense codes are in memory at once; empty: its whole share of the batch.",
        json_schema_extra={"position": 8},
    )
    checkpoint_every_steps: int = Field(
        500, ge=1, title="Steps between checkpoints", description="A killed training repeats at most this many steps.",
        json_schema_extra={"position": 9},
    )
    budget_dollars: float = Field(
        5.0, ge=0, title="Claude budget", description="US dollars that labelling may cost; checked before it is sent.",
        json_schema_extra={"position": 10},
    )
    batch_hours: float = Field(
        24.0, gt=0, title="Longest wait for a batch", description="Hours to wait for Claude's answers.",
        json_schema_extra={"position": 11},
    )
    wandb: Literal["online", "offline", "disabled"] | None = Field(
        None, title="wandb", description="Where the training's view goes (history.parquet is always written); empty: "
        "what SAEFLOW_WANDB or WANDB_MODE says, or offline.",
        json_schema_extra={"position": 12},
    )

    hardware: str | None = Field(
        None, title="Hardware to plan for", description="For the plan's times and dollars alone, such as 8xh200; "
        "empty: none are told.", json_schema_extra={"position": 13},
    )
    expected_tokens: int | None = Field(
        None, ge=1, title="Tokens to plan for",
        description="For the plan alone: tokens of a corpus whose size cannot be told before it is read.",
        json_schema_extra={"position": 14},
    )
    stage_hours: float | None = Field(
        None, gt=0, title="Longest time of a stage",
        description="Hours after which a stage (of shards, each) fails, its progress kept; empty: no limit.",
        json_schema_extra={"position": 15},
    )

    @model_validator(mode="after")
    def _dashboard_is_of_a_cluster(self) -> Self:
        refuse_credentials(self.ray_dashboard or "", "runtime.ray_dashboard")
        if self.ray_dashboard and not is_url(self.ray_dashboard):
            raise ValueError(f"ray_dashboard is {self.ray_dashboard!r}, which is no URL; write it as http://head:8265")
        if self.ray_dashboard and not self.ray_address:
            raise ValueError(
                f"ray_dashboard is {self.ray_dashboard!r}, but without ray_address a local Ray is started, which has "
                "its own; give the address of that cluster too"
            )
        return self

    def resolved(self, settings: Settings) -> "Runtime":
        """With what the environment says about this place filled in where it was left empty."""
        filled: dict[str, str | None] = {"wandb": self.wandb or settings.wandb}
        if self.ray_address is None and settings.ray_address is not None:
            filled |= {"ray_address": settings.ray_address, "ray_dashboard": settings.ray_dashboard}
        return self.model_copy(update=filled)

    def device_here(self) -> Literal["cpu", "cuda"]:
        """Where a stage that works in this process computes; auto takes a GPU of this machine if there is one."""
        import torch

        if self.device == "auto":
            return "cuda" if torch.cuda.is_available() else "cpu"
        return self.device

    def cannot_share(self, batch_size: int) -> str | None:
        """Why the training workers cannot share batches of so many tokens in equal micro-batches; None: they can."""
        if batch_size % self.train_workers:
            return (
                f"train.batch_size is {batch_size}, which {self.train_workers} workers cannot share equally; choose "
                "runtime.train_workers that divides it"
            )
        share = batch_size // self.train_workers
        if self.train_micro_batch is not None and share % self.train_micro_batch:
            return (
                f"runtime.train_micro_batch is {self.train_micro_batch}, which does not divide a worker's share of "
                f"{share} tokens; choose one that does"
            )
        return None
