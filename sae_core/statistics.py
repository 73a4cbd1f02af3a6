"""Mean and variance of streams of vectors, in one pass and mergeable, their median, and bootstrap intervals of ratios.

    moments = Moments.of(x_BD).merge(Moments.of(y_BD))
    moments.mean_D, moments.variance()
    geometric_median(x_BD)

Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance", eq. 2.1: the pairwise form of Welford's
update, which loses no digits when the mean is large against the deviation. Everything is float64.

Shapes: B rows, D width.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviation of a set of rows."""

    count: int
    mean_D: Tensor  # float64
    m2_D: Tensor  # float64, the sum over rows of (x - mean)^2

    @classmethod
    def empty(cls, d: int) -> "Moments":
        """The moments of no rows: the neutral element of `merge`."""
        return cls(0, torch.zeros(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64))

    @classmethod
    def of(cls, x_BD: Tensor) -> "Moments":
        """The moments of the rows of one block (B, D) of any float dtype."""
        if len(x_BD) == 0:
            return cls.empty(x_BD.shape[1])
        x_BD = x_BD.double()
        mean_D = x_BD.mean(dim=0)
        return cls(len(x_BD), mean_D, (x_BD - mean_D).square().sum(dim=0))

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of rows together."""
        count = self.count + other.count
        if count == 0:
            return self
        delta_D = other.mean_D - self.mean_D
        mean_D = self.mean_D + delta_D * (other.count / count)
        m2_D = self.m2_D + other.m2_D + delta_D.square() * (self.count * other.count / count)
        return Moments(count, mean_D, m2_D)

    def variance(self) -> Tensor:
        """Population variance (divided by count), (D,), float64; zero where there are no rows."""
        return self.m2_D / max(self.count, 1)


def merge_all(parts: Iterable[Moments], d: int) -> Moments:
    """The moments of all parts together, merged in their order."""
    total = Moments.empty(d)
    for part in parts:
        total = total.merge(part)
    return total


def geometric_median(x_BD: Tensor, tolerance: float = 1e-6, iterations: int = 200, block: int = 4096) -> Tensor:
    """The point with the least sum of distances to the rows, (D,), float64; unlike the mean, no far row pulls at it.

    Weiszfeld's iteration with the step of Vardi and Zhang 2000, "The multivariate L1-median and associated data depth",
    eq. 2.6, which does not stop at a row that it meets. It ends where a step is shorter than `tolerance` times the mean
    distance, or after `iterations`. Rows of any float dtype, at least one; float64 copies of `block` of them at a time.
    """
    median_D = Moments.of(x_BD).mean_D
    for _ in range(iterations):
        weight, distance, met = 0.0, 0.0, 0
        sum_D, pull_D = torch.zeros_like(median_D), torch.zeros_like(median_D)
        for part_BD in x_BD.split(block):
            part_BD = part_BD.double()
            distance_B = (part_BD - median_D).norm(dim=1)
            inverse_B = torch.where(distance_B > 0, 1 / distance_B, 0)
            weight += float(inverse_B.sum())
            distance += float(distance_B.sum())
            met += int((distance_B == 0).sum())
            sum_D += inverse_B @ part_BD
            pull_D += inverse_B @ (part_BD - median_D)
        if weight == 0:
            break
        pull = float(pull_D.norm())
        share = min(1.0, met / pull) if pull > 0 else 1.0
        step_D = (1 - share) * (sum_D / weight - median_D)
        median_D = median_D + step_D
        if float(step_D.norm()) <= tolerance * distance / len(x_BD):
            break
    return median_D


class Estimate(NamedTuple):
    """A figure with its spread."""

    value: float
    low: float  # 2.5th percentile of the bootstrap
    high: float  # 97.5th percentile of the bootstrap


def bootstrap_ratio(numerators: Tensor, denominators: Tensor, seed: int = 0, resamples: int = 1000) -> Estimate:
    """sum(numerators) / sum(denominators) with its 95% percentile bootstrap interval over units (rows).

    Efron and Tibshirani 1993, "An introduction to the bootstrap", section 13.3. Both are 1-D and of one length, at
    least 1. A mean is the ratio with denominators of ones.
    """
    top, bottom = numerators.double().numpy(), denominators.double().numpy()
    generator = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    for i in range(resamples):
        drawn = generator.integers(0, len(top), len(top))
        ratios[i] = top[drawn].sum() / bottom[drawn].sum()
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Estimate(float(top.sum() / bottom.sum()), float(low), float(high))
