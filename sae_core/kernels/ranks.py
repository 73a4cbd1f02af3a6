"""What the ranks of the fused steps do together: each has a share of the rows, and all learn everything of all rows."""

import torch
from torch import Tensor
from torch import distributed as dist


def agreed(here: bool, device: torch.device, group: "dist.ProcessGroup | None") -> bool:
    """Whether it is so on every rank: ranks that exchange different things would wait for each other for ever."""
    everywhere = torch.tensor(int(here), device=device)
    if group:
        dist.all_reduce(everywhere, op=dist.ReduceOp.MIN, group=group)
    return bool(everywhere)


def share(rows: int, group: "dist.ProcessGroup | None") -> slice:
    """The rows of the global batch that are this rank's."""
    rank, world = (dist.get_rank(group), dist.get_world_size(group)) if group else (0, 1)
    return slice(rank * (rows // world), (rank + 1) * (rows // world))


def squared_norm(x_BD: Tensor, target_BD: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    """||x||^2 + ||target||^2 over the rows of all ranks, a float64 scalar: not finite unless what was given is."""
    total = (x_BD.square().sum() + target_BD.square().sum()).double()
    if group:
        dist.all_reduce(total, group=group)
    return total


def gather(whole: Tensor, own: slice, group: "dist.ProcessGroup") -> None:
    """Fills `whole`, a tensor with the rows of the global batch, from each rank's own rows of it."""
    dist.all_gather_into_tensor(whole, whole[own].clone(), group=group)
