"""BatchTopK's exact selection in the GPU's training step: what reaches the (k x rows)-th largest value of the batch
(Bussmann et al. 2024, "BatchTopK sparse autoencoders").

As on the CPU (cpu_batch_top_k.py) the values looked at are those from GUESS times the last step's threshold on, and the
batch is encoded again where they turn out too few, or too many for the places there are: the result does not depend on
the guess, and memory not on how many latents there are. Whether they did is asked for while the GPU is busy decoding,
so that it never waits for the host.

Shapes: B rows of the global batch, R rows of a tile, T latents of one tile, N n_latents, W places of a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch import distributed as dist

GUESS = 0.9
FIRST_ROWS = 64  # that the very first guess is made from
PIECE = 512  # latents of a row that a program has in registers


class BatchSelection:
    """The codes of a batch, all at once; each rank fills in its own rows, and all learn one threshold.

    Latents ascend within a row; places that stay free are its last and hold 0 and the latent N. A row in which a value
    is not finite has NaN in its first place.
    """

    def __init__(
        self,
        rows: int,
        k: int,
        n: int,
        own: slice,
        group: "dist.ProcessGroup | None",
        alone: bool,
        device: torch.device,
    ) -> None:
        """`group`: the ranks that share the batch; `alone`: whether each of them selects by itself all the same."""
        self._own, self._group = own, group
        self._together = None if alone else group
        self._wanted = k * (rows if self._together else own.stop - own.start)
        self._k, self._n, self._device = k, n, device
        self._guess = torch.zeros((), device=device)
        self.has_guess = False
        self.threshold = torch.zeros((), device=device)  # smallest value kept, at least 0
        self.counts_B = torch.zeros(rows, dtype=torch.int32, device=device)
        self._report = torch.zeros(2, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._reported = torch.cuda.Event() if device.type == "cuda" else None
        self._make_room(min(n, 4 * k))

    def _make_room(self, places: int) -> None:
        rows = len(self.counts_B)
        self.values_BK = torch.zeros(rows, places, device=self._device)
        self.latents_BK = torch.full((rows, places), self._n, dtype=torch.int32, device=self._device)

    def guess(self, pre_RN: Tensor) -> None:
        """From pre-activations of some rows, with their bias."""
        wanted = min(self._k * len(pre_RN), pre_RN.numel())
        least = pre_RN.flatten().topk(wanted, sorted=False).values.min()
        self._guess = (GUESS * least).nan_to_num(0.0).clamp_min(0)
        if self._together:  # one for all ranks: what lies below it is nowhere among the candidates
            dist.all_reduce(self._guess, op=dist.ReduceOp.MIN, group=self._together)
        self.has_guess = True

    def take(self, pre_RT: Tensor, bias_T: Tensor, first: int, part: slice) -> None:
        """Candidates of the rows `part` among the latents from number `first` on, tiles in ascending order; counts all
        of them, keeps those there are places for."""
        rows, width = pre_RT.shape
        values_RW, latents_RW = self.values_BK[part], self.latents_BK[part]
        _reaching[(rows,)](
            pre_RT, pre_RT.stride(0), bias_T, first, width, self._guess, values_RW, latents_RW, self.counts_B[part],
            values_RW.shape[1], BLOCK_T=min(PIECE, triton.next_power_of_2(width)), num_warps=1,
        )  # fmt: skip

    def finish(self) -> None:
        """Keeps what reaches the threshold, and asks whether the candidates did for that: `holds` says."""
        counts_R = self.counts_B[self._own]
        values_RW, latents_RW = self.values_BK[self._own], self.latents_BK[self._own]
        places = values_RW.shape[1]
        found, most = counts_R.sum(dtype=torch.int64), counts_R.max().long()
        there_RW = torch.arange(places, device=self._device) < counts_R[:, None]
        values = torch.where(there_RW, values_RW, 0.0).flatten()
        if self._together:
            dist.all_reduce(found, group=self._together)
            own, values = values, values.new_empty(len(values) * dist.get_world_size(self._together))
            dist.all_gather_into_tensor(values, own, group=self._together)
        spoilt = values.isnan().any()  # the step is lost, and says nothing of the next one's threshold
        few = (found < self._wanted) & (self._guess > 0) & ~spoilt
        report = torch.stack([few.long(), most])
        if self._group:
            dist.all_reduce(report, op=dist.ReduceOp.MAX, group=self._group)
        self._report.copy_(report, non_blocking=True)
        if self._reported:
            self._reported.record()
        zero = torch.zeros((), device=self._device)
        reached = values.sort(descending=True).values[self._wanted - 1] if self._wanted <= len(values) else zero
        self.threshold = mean = reached.nan_to_num(0.0)
        # Of too many candidates only some have a place; what that many reach is no more than what all of them reach.
        lower = torch.where(self._guess > 1e-12, self._guess / 2, 0.0)
        self._again = torch.where(few, lower, torch.maximum(self._guess, mean))
        self._guess = torch.where(spoilt, self._guess, GUESS * mean)
        _keep[(len(counts_R),)](
            reached, values_RW, latents_RW, counts_R, self._n, places, BLOCK_W=PIECE, num_warps=1
        )  # fmt: skip
        if self._group and not self._together:
            dist.all_reduce(mean, group=self._group)
            self.threshold = mean / dist.get_world_size(self._group)

    def holds(self) -> bool:
        """Waits for the answer; where it is False the rows must be taken again, by another guess or in more places."""
        if self._reported:
            self._reported.synchronize()
        few, most = self._report.tolist()
        places = self.values_BK.shape[1]
        if few or most > places:
            self._guess = self._again
            if most > places:
                self._make_room(min(self._n, 2 * places, most + most // 4))
            return False
        return True


@triton.jit
def _reaching(pre, stride, bias, first, width, guess, values, latents, counts, places, BLOCK_T: tl.constexpr):
    """One row: the positive values of pre + bias that reach the guess."""
    row = tl.program_id(0).to(tl.int64)
    pre += row * stride
    values += row * places
    latents += row * places
    bound = tl.load(guess)
    count = 0
    if first > 0:
        count = tl.load(counts + row)
    for begin in range(0, width, BLOCK_T):
        place = begin + tl.arange(0, BLOCK_T)
        inside = place < width
        value = tl.load(pre + place, inside, 0.0) + tl.load(bias + place, inside, 0.0)
        finite = tl.abs(value) < float("inf")
        reaches = finite & (value >= bound) & (value > 0)
        new = tl.sum(reaches.to(tl.int32), 0)
        if new > 0:
            at = count + tl.cumsum(reaches.to(tl.int32), 0) - 1
            tl.store(values + at, value, reaches & (at < places))
            tl.store(latents + at, first + place, reaches & (at < places))
            count += new
        if tl.sum(finite.to(tl.int32), 0) < BLOCK_T:
            tl.debug_barrier()
            tl.store(values, float("nan"))
            tl.store(latents, 0)
            count = tl.maximum(count, 1)
    tl.store(counts + row, count)


@triton.jit
def _keep(threshold, values, latents, counts, nobody, places, BLOCK_W: tl.constexpr):
    """One row: moves what reaches the threshold, and NaN, to its first places, and frees the others."""
    row = tl.program_id(0).to(tl.int64)
    values += row * places
    latents += row * places
    bound = tl.load(threshold)
    held, count = tl.minimum(tl.load(counts + row), places), 0
    for begin in range(0, held, BLOCK_W):
        slot = begin + tl.arange(0, BLOCK_W)
        value, latent = tl.load(values + slot, slot < held, 0.0), tl.load(latents + slot, slot < held, 0)
        kept = (slot < held) & ((value >= bound) | (value != value))
        at = count + tl.cumsum(kept.to(tl.int32), 0) - 1
        tl.debug_barrier()  # the whole program has read its piece
        tl.store(values + at, value, kept)
        tl.store(latents + at, latent, kept)
        count += tl.sum(kept.to(tl.int32), 0)
        tl.debug_barrier()
    for begin in range(count, places, BLOCK_W):
        slot = begin + tl.arange(0, BLOCK_W)
        tl.store(values + slot, tl.zeros([BLOCK_W], tl.float32), slot < places)
        tl.store(latents + slot, tl.zeros([BLOCK_W], tl.int32) + nobody, slot < places)
    tl.store(counts + row, count)
