"""The training step on a CPU in fp32: one dense matmul, everything else in compiled loops over what fired.

No gradient of a weight matrix ever lies in memory: the pass that makes a latent's gradient also makes its update. What
is compiled takes some seconds at the first step on a machine and half a second in later processes.

Ranks share the encoder's matmul, the one large cost, then tell each other their rows and sparse codes, B (D + 2K + 1)
numbers where dense gradients are 2ND, and each makes the whole update: their weights are equal by construction. Where
the pre-bias is not subtracted from what is encoded, as with transcoders, they tell the rows to be reconstructed too.
"""

import functools
import importlib
from collections.abc import Mapping

import numba
import numpy as np
import torch
from torch import Tensor
from torch import distributed as dist

from sae_core.autograd import SUMS
from sae_core.gradients import auxiliary_gradients, written_by_hand
from sae_core.kernels import cpu_loops as loops
from sae_core.kernels import cpu_rounded, ranks
from sae_core.kernels.compiled import ROWS
from sae_core.kernels.cpu_batch_top_k import BatchSelection
from sae_core.kernels.cpu_top_k import RowSelection
from sae_core.kernels.step import AdamW, Found, Moments, StepOptions
from sae_core.sae import SAE

PARAMETERS = ("W_enc", "W_dec", "b_enc", "b_pre")
TILE_ELEMENTS = 1 << 25  # pre-activations held at once: 128 MiB


@functools.cache
def available() -> bool:
    """Says whether numba finds OpenMP here, whose threads it then shares with torch.

    Its own kinds of threads fight torch's, which wait for work by spinning: plain torch is faster than that.
    """
    try:
        importlib.import_module("numba.np.ufunc.omppool")
    except ImportError:
        return False
    return True


class FusedStep:
    """Gradients as sparse codes and errors, applied in one pass over the latents. A `Step` of TopK, BatchTopK,
    Matryoshka and transcoders."""

    def __init__(
        self,
        sae: SAE,
        moments: Mapping[str, Moments],
        options: StepOptions,
        group: "dist.ProcessGroup | None" = None,
        *,
        rounds: bool | None = None,
    ) -> None:
        """`rounds`: whether the encoder's matmul is made of factors in bf16, and what it may select computed again in
        fp32 (cpu_rounded.py): the same within the rounding of fp32; None: where that is faster. Ranks may differ.
        """
        self._sae = sae
        self._options = options
        self._scale = 2 / (options.rows * options.variance)
        self._group = group if group and dist.get_world_size(group) > 1 else None
        rows, k = options.rows, sae.config.k
        self._own = ranks.share(rows, self._group)
        (n, d), d_out = sae.W_enc.shape, sae.W_dec.shape[1]
        self._selection: RowSelection | BatchSelection = RowSelection(rows, k, n)
        if sae.selects_over_batch:
            together = None if options.select_per_rank else self._group
            self._selection = BatchSelection(rows, k, n, self._own, together)
        self.figures = 3 if written_by_hand(sae) else SUMS
        self._ends_G = np.array(sae.prefixes)
        self._moving = {name: _moving(getattr(sae, name), moments[name]) for name in PARAMETERS}

        # What the encoder reads, and what is to be reconstructed less b_pre: one thing where the first lacks b_pre too.
        self._inputs_BD = torch.empty(rows, d)
        self._wanted_BE = self._inputs_BD if sae.config.subtracts_pre_bias else torch.empty(rows, d_out)
        with_skip = "W_skip" in moments  # a transcoder's linear path, whose gradient alone is dense
        self._skip = (sae.get_parameter("W_skip").detach(), moments["W_skip"]) if with_skip else None
        tile = min(self._own.stop - self._own.start, max(1, TILE_ELEMENTS // n))
        if rounds is None:
            rounds = cpu_rounded.worth_it(n, d, k)
        self._rounded = cpu_rounded.RoundedEncoder(tile, n, d) if rounds else None
        self._pre_TN = torch.empty(tile, n, dtype=torch.bfloat16 if rounds else torch.float32)
        self._error_GBE = torch.empty(len(self._ends_G), rows, d_out)
        blocks = -(-rows // ROWS)
        self._error_RE = np.empty((blocks, d_out), np.float32)
        self._sums_R3 = np.empty((blocks, 3))
        self._starts_N1 = np.empty(n + 1, np.int64)
        self._make_room(k, rows * k)
        self._dead_place_N = np.full(n, -1, np.int32)
        self._nobody = (np.empty((0, d), np.float32), np.empty((0, d_out), np.float32), np.empty(0, np.float32))
        self._dead = self._nobody
        start_threads()

    def _make_room(self, places: int, pairs: int) -> None:
        self._d_values_BK = np.empty((self._options.rows, places), np.float32)
        self._rows_P = np.empty(pairs, np.int32)
        self._values_P, self._d_values_P = np.empty((2, pairs), np.float32)

    @torch.no_grad()
    def gradients(self, x_BD: Tensor, target_BD: Tensor, dead_N: Tensor, sparsity: float) -> Found:
        """There is no sparsity penalty: these architectures have none. Of all but a transcoder the target is `x_BD`."""
        sae, options = self._sae, self._options
        dead_M = dead_N.nonzero().squeeze(1)
        start_threads()
        wanted_BE = torch.sub(target_BD, sae.b_pre, out=self._wanted_BE[self._own])
        if self._skip:
            wanted_BE -= x_BD @ self._skip[0].t()
        if not sae.config.subtracts_pre_bias:
            self._inputs_BD[self._own] = x_BD
        pre_BM = self._encode(dead_M if options.auxiliary > 0 else dead_M[:0])
        if self._group:
            self._exchange(self._group)
        chosen = self._selection
        pairs, places = int(chosen.counts_B.sum()), chosen.values_BK.shape[1]
        if pairs > len(self._rows_P) or places > self._d_values_BK.shape[1]:
            self._make_room(places, pairs + pairs // 4)
        loops.errors(
            self._wanted_BE.numpy(),
            self._moving["b_pre"].weight,
            self._moving["W_dec"].weight,
            self._ends_G,
            chosen.values_BK,
            chosen.places_BK,
            chosen.counts_B,
            self._error_GBE.numpy(),
            self._d_values_BK,
            self._error_RE,
            self._sums_R3,
        )
        loops.sort_by_latent(
            chosen.values_BK,
            self._d_values_BK,
            chosen.places_BK,
            chosen.counts_B,
            self._scale,
            self._starts_N1,
            self._rows_P,
            self._values_P,
            self._d_values_P,
        )
        squared_error, squared_norm, squared_errors = self._sums_R3.sum(0).tolist()
        if target_BD is not x_BD:
            squared_norm = float(ranks.squared_norm(x_BD, target_BD, self._group))
        sums = [squared_error / options.variance, 0.0, squared_norm]
        self._dead_place_N.fill(-1)
        self._dead = self._nobody
        if pre_BM.shape[1]:
            scale = self._scale * options.auxiliary
            inputs_BD, error_BE = self._inputs_BD[self._own], self._error_GBE[-1, self._own] * len(self._ends_G)
            found = auxiliary_gradients(sae, pre_BM, inputs_BD, error_BE, dead_M, options.k_auxiliary, scale)
            if self._group:
                for tensor in found:
                    dist.all_reduce(tensor, group=self._group)
            self._dead_place_N[dead_M.numpy()] = np.arange(len(dead_M))
            self._dead = (found.W_enc_MD.numpy(), found.W_dec_MD.numpy(), found.b_enc_M.numpy())
            sums[1] = float(found.squared_error) / options.variance
        if self.figures == SUMS:
            sums += [squared_errors / options.variance + options.auxiliary * sums[1], 0.0]
        return Found(torch.tensor(sums, dtype=torch.float64), torch.from_numpy(np.diff(self._starts_N1)))

    def _encode(self, dead_M: Tensor) -> Tensor:
        """The codes of this rank's rows; returns their pre-activations (B, M) of dead latents."""
        W_enc, b_enc = self._sae.W_enc, self._sae.b_enc
        bias_N = self._moving["b_enc"].weight
        if self._rounded:
            self._rounded.round(self._moving["W_enc"].weight, bias_N)
        while True:
            for start in range(self._own.start, self._own.stop, len(self._pre_TN)):
                part = slice(start, min(start + len(self._pre_TN), self._own.stop))
                inputs_TD, pre_TN = self._inputs_BD[part], self._pre_TN[: part.stop - start]
                rounded = None
                if self._rounded:
                    rounded = self._rounded.pre_activations(inputs_TD, pre_TN)
                else:
                    torch.mm(inputs_TD, W_enc.t(), out=pre_TN)
                self._selection.take(cpu_rounded.bits(pre_TN), bias_N, rounded, part)
            if self._selection.finish():
                break
        if not len(dead_M):
            return torch.empty(len(self._inputs_BD[self._own]), 0)
        return torch.addmm(b_enc[dead_M], self._inputs_BD[self._own], W_enc[dead_M].t())

    def _exchange(self, group: "dist.ProcessGroup") -> None:
        """Every rank's rows and codes on every rank, and the mean of their thresholds."""
        chosen = self._selection
        if isinstance(chosen, BatchSelection):
            chosen.meet(group)
        rows = [self._inputs_BD] if self._wanted_BE is self._inputs_BD else [self._inputs_BD, self._wanted_BE]
        codes = map(torch.from_numpy, (chosen.values_BK, chosen.places_BK, chosen.counts_B))
        for tensor in (*rows, *codes):
            ranks.gather(tensor, self._own, group)

    def update(self, learning_rate: float, number: int) -> None:
        adamw = self._options.adamw(learning_rate, number)
        if self._skip:
            adamw.move(*self._skip, self._error_GBE[0].t() @ self._inputs_BD * self._scale)
        loops.update(
            self._inputs_BD.numpy(),
            self._error_GBE.numpy(),
            self._error_RE.sum(0) * np.float32(self._scale),
            self._ends_G,
            self._starts_N1,
            self._rows_P,
            self._values_P,
            self._d_values_P,
            self._dead_place_N,
            *self._dead,
            *(self._moving[name] for name in PARAMETERS),
            AdamW(*map(np.float32, adamw)),
            self._sae.config.subtracts_pre_bias,
            self._sae.unit_decoder,
        )
        if self._selection.threshold is not None:
            self._sae.after_step(torch.tensor(self._selection.threshold), number - 1)


def _moving(parameter: Tensor, moments: Moments) -> loops.Moving:
    """Views of the tensors' own memory."""
    return loops.Moving(parameter.detach().numpy(), *(tensor.numpy() for tensor in moments))


def start_threads() -> None:
    """Gives numba as many threads as torch uses, now; they start at the first call."""
    numba.config.THREADING_LAYER = "omp"
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    if torch.get_num_threads() != threads:  # both use one OpenMP, whose number numba sets when its threads start
        torch.set_num_threads(threads)
