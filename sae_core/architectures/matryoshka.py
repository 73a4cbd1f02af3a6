"""Matryoshka: nested dictionaries, each of which has to reconstruct alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sae_core.architectures.batch_topk import BatchTopKSAE
from sae_core.codes import Codes, TopKCodes
from sae_core.config import default_prefixes
from sae_core.losses import Batch, squared_error
from sae_core.topk import top_k


class MatryoshkaSAE(BatchTopKSAE):
    """Bussmann et al. 2025, "Learning multi-level features with Matryoshka sparse autoencoders".

    The loss is the mean over prefixes m of ||x - x^_m||^2, where x^_m is made by the first m latents alone. Latents
    are selected over the batch, or per row with `selection="row"`. What is reported as error is that of all latents.
    """

    @property
    def prefixes(self) -> tuple[int, ...]:
        """Sizes of the nested dictionaries."""
        return self.config.prefixes or default_prefixes(self.config.n_latents)

    @property
    def selects_over_batch(self) -> bool:
        """Unless rows are selected by themselves."""
        return self.config.selection != "row"

    def encode_normalised(self, normalised_BD: Tensor) -> Codes:
        """As BatchTopK, or the k largest of each row."""
        if self.selects_over_batch:
            return super().encode_normalised(normalised_BD)
        values_BK, indices_BK = top_k(self.pre_activations(normalised_BD), self.config.k)
        return TopKCodes(values_BK.relu(), indices_BK)

    def training_code(self, pre_BN: Tensor, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """As BatchTopK, or the k largest of each row and no threshold."""
        if self.selects_over_batch:
            return super().training_code(pre_BN, batch)
        values_BK, indices_BK = top_k(pre_BN, self.config.k)
        return torch.zeros_like(pre_BN).scatter(1, indices_BK, values_BK.relu()), None

    def batch_threshold(self, micro_batches: Sequence[Batch]) -> Tensor | None:
        """As BatchTopK; none where rows are selected by themselves."""
        return super().batch_threshold(micro_batches) if self.selects_over_batch else None

    def errors(self, code_BN: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """The error of all latents, what the mean over prefixes adds to it, and the reconstruction by all."""
        reconstruction_BD, begin, errors = self.b_pre.expand_as(batch.target_BD), 0, []
        for end in self.prefixes:
            reconstruction_BD = reconstruction_BD + code_BN[:, begin:end] @ self.W_dec[begin:end]
            errors.append(squared_error(reconstruction_BD, batch.target_BD))
            begin = end
        return errors[-1], torch.stack(errors).mean() - errors[-1], reconstruction_BD
