"""The training step on a GPU in fp32: one dense matmul in tiles, everything else in Triton over what fired.

As on the CPU (cpu.py) no gradient of a weight matrix lies in memory, and ranks share the encoder's matmul, then tell
each other rows and codes and make the whole update each. Besides weights and moments there are one tile of
pre-activations, rows and errors, codes of K numbers a row (of BatchTopK some times K) and TopK's pool of a few hundred;
while latents are dead, their two gradients too.

With `precision` fp32 all is fp32, as torch has it. With tf32 the factors in matmuls, the encoder's and those of the
auxiliary loss, are rounded to tf32. With bf16 the encoder's are rounded to bf16, and so are the rows, errors and
decoder directions that decoding and gradients gather, of which there are copies; sums are fp32 all the same, and so are
weights and moments. The selection is always exact for the pre-activations that the matmul gives.

The host never waits for the step it has just asked for, but for BatchTopK's selection, whose check it awaits while the
GPU decodes. How many latents are dead it learns LAG steps later, so that a latent which has died takes part in the
auxiliary loss only then.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch import distributed as dist

from sae_core.autograd import SUMS
from sae_core.gradients import AuxiliaryGradients, auxiliary_gradients, written_by_hand
from sae_core.kernels import gpu_update, ranks
from sae_core.kernels.gpu_batch_top_k import FIRST_ROWS, BatchSelection
from sae_core.kernels.gpu_decode import errors
from sae_core.kernels.gpu_top_k import RowSelection
from sae_core.kernels.gpu_update import DeadGradients, Pairs
from sae_core.kernels.step import Found, Moments, Precision, StepOptions
from sae_core.sae import SAE

TILE_LATENTS = 4096
TILE_ELEMENTS = 1 << 26  # pre-activations held at once: 256 MiB
LAG = 2  # steps
MOST_K = 4096  # kept in registers while they are merged
PAIRS_PER_LATENT = 16  # of the global batch, up to which exchanging codes wins on paper: tests/benchmarks/NOTES.md


def sparse_wins(n: int, k: int, rows: int, world: int) -> bool:
    """Whether this step, and not DenseStep, is for `rows` rows shared by `world` ranks: the same on every rank.

    DenseStep gathers as well and makes dense gradients besides, so alone this one wins. Ranks that exchange codes all
    sum up the pairs of the global batch, which takes longer than adding up dense gradients where these are many.
    """
    return k <= MOST_K and (world == 1 or rows * k <= PAIRS_PER_LATENT * n)


class TritonStep:
    """Gradients as sparse codes and errors, applied in one pass over the latents. A `Step` of TopK, BatchTopK,
    Matryoshka, and transcoders from a width to the same."""

    def __init__(
        self,
        sae: SAE,
        moments: Mapping[str, Moments],
        options: StepOptions,
        group: "dist.ProcessGroup | None" = None,
    ) -> None:
        self._sae = sae
        self._options = options
        self._scale = 2 / (options.rows * options.variance)
        self._group = group if group and dist.get_world_size(group) > 1 else None
        self._own = ranks.share(options.rows, self._group)
        self._moving = {name: (parameter.detach(), moments[name]) for name, parameter in sae.named_parameters()}
        self._device, (n, d), k = sae.W_enc.device, sae.W_enc.shape, sae.config.k
        self._skip = self._moving.get("W_skip")  # a transcoder's linear path, whose gradient alone is dense
        width = min(n, TILE_LATENTS)
        rows = min(self._own.stop - self._own.start, max(1, TILE_ELEMENTS // width))
        self._pre_BT = torch.empty(rows, width, device=self._device)
        self._selection: RowSelection | BatchSelection
        if sae.selects_over_batch:
            selecting = self._own, self._group, options.select_per_rank
            self._selection = BatchSelection(options.rows, k, n, *selecting, self._device)
        else:
            self._selection = RowSelection(options.rows, k, n, rows, self._device)
        self.figures = 3 if written_by_hand(sae) else SUMS
        self._ends_G = torch.tensor(sae.prefixes, dtype=torch.int32, device=self._device)
        # What the encoder reads, and what is to be reconstructed less b_pre: see cpu.py.
        self._inputs_BD = torch.empty(options.rows, d, device=self._device)
        self._wanted_BD = self._inputs_BD if sae.config.subtracts_pre_bias else torch.empty_like(self._inputs_BD)
        self._error_GBD = torch.empty(len(self._ends_G), options.rows, d, device=self._device)
        self._halves = _Halves(sae, self._error_GBD.shape) if options.precision == "bf16" else None
        self._dead_latents = _DeadLatents(self._device)
        self._pairs: Pairs | None = None
        self._dead = self._no_gradients(0)

    @torch.no_grad()
    def gradients(self, x_BD: Tensor, target_BD: Tensor, dead_N: Tensor, sparsity: float) -> Found:
        """There is no sparsity penalty: these architectures have none. Of all but a transcoder the target is `x_BD`."""
        sae, options, chosen = self._sae, self._options, self._selection
        dead_M = self._dead_latents.of(dead_N) if options.auxiliary > 0 else None
        wanted_BD = torch.sub(target_BD, sae.b_pre, out=self._wanted_BD[self._own])
        if self._skip:
            with _tf32(options.precision != "fp32"):
                wanted_BD -= x_BD @ self._skip[0].t()
        if not sae.config.subtracts_pre_bias:
            self._inputs_BD[self._own] = x_BD
        _, W_dec, _, error_GBD = self._factors()
        holds = False
        while not holds:
            self._encode()
            if self._group:
                self._exchange(self._group)
            codes = chosen.values_BK, chosen.latents_BK
            sums_B3 = errors(
                self._wanted_BD, sae.b_pre, W_dec, self._ends_G, *codes, chosen.counts_B, self._error_GBD, error_GBD
            )
            self._pairs = pairs = Pairs.of(*codes, len(sae.b_enc))
            holds = chosen.holds()
        squared_error, squared_norm, squared_errors = sums_B3.sum(0, dtype=torch.float64)
        if target_BD is not x_BD:
            squared_norm = ranks.squared_norm(x_BD, target_BD, self._group)
        auxiliary_error = torch.zeros_like(squared_error)
        self._dead = self._no_gradients(0)
        if dead_M is not None and len(dead_M):
            with _tf32(options.precision != "fp32"):
                self._dead, auxiliary_error = self._auxiliary(dead_M, dead_N)
        sums = [squared_error / options.variance, auxiliary_error / options.variance, squared_norm]
        if self.figures == SUMS:
            sums += [squared_errors / options.variance + options.auxiliary * sums[1], torch.zeros_like(squared_norm)]
        return Found(torch.stack(sums), pairs.starts_N1.diff().long())

    def _exchange(self, group: "dist.ProcessGroup") -> None:
        """Every rank's rows and codes on every rank."""
        chosen, halves = self._selection, self._halves
        shared = [self._inputs_BD, chosen.values_BK, chosen.latents_BK]
        shared += [] if self._wanted_BD is self._inputs_BD else [self._wanted_BD]
        shared += [] if chosen.counts_B is None else [chosen.counts_B]
        for tensor in [*shared, halves.inputs_BD] if halves else shared:
            ranks.gather(tensor, self._own, group)

    def _factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """W_enc, W_dec, rows as the encoder reads them and suffix errors, as products take them."""
        if self._halves:
            return self._halves.W_enc, self._halves.W_dec, self._halves.inputs_BD, self._halves.error_GBD
        return self._sae.W_enc, self._sae.W_dec, self._inputs_BD, self._error_GBD

    def _encode(self) -> None:
        """The codes of this rank's rows."""
        if self._halves:
            self._halves.renew(self._sae)
            self._halves.inputs_BD[self._own] = self._inputs_BD[self._own]
        W_enc, _, inputs_BD, _ = self._factors()
        b_enc, (at_once, width), n = self._sae.b_enc.detach(), self._pre_BT.shape, len(W_enc)
        chosen, own = self._selection, self._own
        if isinstance(chosen, BatchSelection) and not chosen.has_guess:
            rows_BD = inputs_BD[own][: max(1, min(FIRST_ROWS, TILE_ELEMENTS // n))]
            pre_BN = torch.empty(len(rows_BD), n, device=self._device)
            product(rows_BD, W_enc, pre_BN, self._options.precision)
            chosen.guess(pre_BN + b_enc)
        for start in range(own.start, own.stop, at_once):
            part = slice(start, min(start + at_once, own.stop))
            for first in range(0, n, width):
                tile = slice(first, min(first + width, n))
                pre_BT = self._pre_BT[: part.stop - start, : tile.stop - first]
                product(inputs_BD[part], W_enc[tile], pre_BT, self._options.precision)
                chosen.take(pre_BT, b_enc[tile], first, part)
        chosen.finish()

    def _auxiliary(self, dead_M: Tensor, dead_N: Tensor) -> tuple[DeadGradients, Tensor]:
        """Gradients of the auxiliary loss and its squared error, summed over all ranks' rows."""
        sae, options = self._sae, self._options
        W_enc_MD, b_enc_M, lives_M = sae.W_enc[dead_M], sae.b_enc[dead_M], ~dead_N[dead_M]
        dead, squared_error = self._no_gradients(len(dead_M)), torch.zeros((), device=self._device)
        total = AuxiliaryGradients(dead.W_enc_MD, dead.W_dec_MD, dead.b_enc_M, squared_error)
        tile = max(1, TILE_ELEMENTS // len(dead_M))
        own = (tensor[self._own].split(tile) for tensor in (self._inputs_BD, self._error_GBD[-1]))
        for inputs_BD, last_BD in zip(*own, strict=True):
            error_BD = last_BD * len(self._ends_G)  # of all latents
            pre_BM = torch.addmm(b_enc_M, inputs_BD, W_enc_MD.t()).masked_fill_(lives_M, -torch.inf)
            scale = self._scale * options.auxiliary
            found = auxiliary_gradients(sae, pre_BM, inputs_BD, error_BD, dead_M, options.k_auxiliary, scale)
            for tensor, part in zip(total, found, strict=True):
                tensor += part
        if self._group:
            for tensor in total:
                dist.all_reduce(tensor, group=self._group)
        squared_error *= ~lives_M.all()
        dead.place_N[dead_M] = torch.arange(len(dead_M), dtype=torch.int32, device=self._device)
        return dead, squared_error

    def _no_gradients(self, dead: int) -> DeadGradients:
        n, d = self._sae.W_enc.shape
        place_N = torch.full((n,), -1, dtype=torch.int32, device=self._device)
        W_enc_MD, W_dec_MD = torch.zeros(2, dead, d, device=self._device)
        return DeadGradients(place_N, W_enc_MD, W_dec_MD, torch.zeros(dead, device=self._device))

    @torch.no_grad()
    def update(self, learning_rate: float, number: int) -> None:
        if self._pairs is None:
            raise RuntimeError("There is no gradient to update with: call gradients() first.")
        pairs, self._pairs = self._pairs, None
        adamw = self._options.adamw(learning_rate, number)
        _, _, inputs_BD, error_GBD = self._factors()
        through_QD = gpu_update.update(
            inputs_BD,
            error_GBD,
            self._scale,
            self._ends_G,
            pairs,
            self._dead,
            self._moving["W_enc"],
            self._moving["W_dec"],
            self._moving["b_enc"],
            adamw,
            (self._halves.W_enc, self._halves.W_dec) if self._halves else None,
            self._sae.unit_decoder,
        )
        gradient_D = self._error_GBD[0].sum(0) * self._scale
        if self._sae.config.subtracts_pre_bias:
            gradient_D -= through_QD.sum(0)
        if self._skip:
            with _tf32(self._options.precision != "fp32"):
                gradient_DD = self._error_GBD[0].t() @ self._inputs_BD
            adamw.move(*self._skip, gradient_DD * self._scale)
        adamw.move(*self._moving["b_pre"], gradient_D)
        if self._selection.threshold is not None:
            self._sae.after_step(self._selection.threshold, number - 1)


class _Halves:
    """Copies in bf16 of what products read; the update keeps those of the weights up to date."""

    def __init__(self, sae: SAE, errors: torch.Size) -> None:
        self.W_enc, self.W_dec = sae.W_enc.detach().bfloat16(), sae.W_dec.detach().bfloat16()
        self.error_GBD = torch.empty(errors, dtype=torch.bfloat16, device=sae.W_enc.device)
        self.inputs_BD = torch.empty_like(self.error_GBD[0])
        self._seen = (-1, -1)

    def renew(self, sae: SAE) -> None:
        """Copies weights that something other than the update has changed, which torch counts."""
        now = sae.W_enc._version, sae.W_dec._version
        if now != self._seen:
            self.W_enc.copy_(sae.W_enc)
            self.W_dec.copy_(sae.W_dec)
            self._seen = now


class _DeadLatents:
    """The numbers of the latents that were dead LAG steps ago; at first, of those that are dead now."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._asked: deque[tuple[Tensor, Tensor, torch.cuda.Event | None]] = deque(maxlen=LAG + 1)

    def of(self, dead_N: Tensor) -> Tensor:
        """Takes note of those dead now; (M,), waits at most for what was asked LAG steps ago."""
        order_N = (~dead_N).to(torch.uint8).argsort(stable=True)
        count = torch.empty((), dtype=torch.int64, pin_memory=self._on_gpu)
        count.copy_(dead_N.sum(), non_blocking=True)
        event = torch.cuda.Event() if self._on_gpu else None
        if event:
            event.record()
        self._asked.append((order_N, count, event))
        order_N, count, event = self._asked[0]
        if event:
            event.synchronize()
        return order_N[: int(count)]


def product(rows_BD: Tensor, weights_TD: Tensor, out_BT: Tensor, precision: Precision) -> None:
    """rows @ weights^T into fp32 memory: sums in fp32; for bf16 both factors are bf16 already."""
    if precision == "bf16":
        torch.mm(rows_BD, weights_TD.t(), out_dtype=torch.float32, out=out_BT)
        return
    with _tf32(precision == "tf32"):
        torch.mm(rows_BD, weights_TD.t(), out=out_BT)


@contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    """torch's switch, for the time of a few calls."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if wanted:
        matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before
