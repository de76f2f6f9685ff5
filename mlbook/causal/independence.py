"""Tests of independence, of conditional independence, and how far two samples are
apart."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from scipy.special import erfc
from scipy.stats import chi2

from mlbook.causal.borders import check_pair, check_table
from mlbook.common.checks import check_count


class FisherZ:
    """Tests of vanishing partial correlations: exact for Gaussian variables, and a test
    of no linear dependence for others.

    The partial correlation r of i and j given S follows from the inverse P of their
    correlation matrix, r = −P_ij / √(P_ii P_jj), and √(n − |S| − 3) artanh r is
    standard normal where it vanishes (Fisher 1924).
    """

    def __init__(self, data):
        """
        Args:
            data: rows of observations, as `borders.check_table` takes them.
        """
        table = check_table(data)
        self.names, self.n = list(table), len(table)
        self.correlation = np.corrcoef(table.to_numpy(), rowvar=False).reshape(
            len(self.names), -1
        )

    def __call__(self, i: int, j: int, sets: Iterable[tuple[int, ...]]) -> np.ndarray:
        """p-values of columns i and j given each of `sets`, all of one size.

        Raises:
            ValueError: there are too few rows for sets of that size.
        """
        blocks = np.array([(i, j, *given) for given in sets])
        free = self.n - blocks.shape[1] - 1
        if free < 1:
            raise ValueError(
                f"{self.n} rows are too few to condition on {blocks.shape[1] - 2} variables"
            )
        inverse = np.linalg.inv(self.correlation[blocks[:, :, None], blocks[:, None]])
        r = -inverse[:, 0, 1] / np.sqrt(inverse[:, 0, 0] * inverse[:, 1, 1])
        return erfc(
            np.abs(np.arctanh(np.clip(r, -1 + 1e-15, 1 - 1e-15))) * (free / 2) ** 0.5
        )


class G2:
    """Likelihood-ratio tests of independence between discrete variables, in each
    stratum of what is conditioned on.

    G² = 2 Σ O log(O/E) is compared with χ² of Σ (|i| − 1)(|j| − 1) degrees of freedom,
    a sum over the strata that hold rows, |i| the values of i that occur there (Spirtes,
    Glymour & Scheines 2000).
    """

    at_once = 1  # a test is slow: the next one only if it is needed

    def __init__(self, data):
        """
        Args:
            data: columns of any discrete values.
        """
        table = pd.DataFrame(data)
        self.names, self.n = list(table), len(table)
        coded = [pd.factorize(table[name]) for name in table]
        self.codes = np.array([codes for codes, _ in coded])
        self.sizes = [len(values) for _, values in coded]
        for name, codes, size in zip(self.names, self.codes, self.sizes, strict=True):
            if size < 2:
                raise ValueError(f"column {name!r} is constant")
            if size > max(self.n / 2, 2):
                raise ValueError(
                    f"column {name!r} has {size} values in {self.n} rows: that is not discrete"
                )
            if (codes < 0).any():
                raise ValueError(
                    f"column {name!r} has a missing value in row {int(np.flatnonzero(codes < 0)[0])}"
                )

    def __call__(self, i: int, j: int, sets: Iterable[tuple[int, ...]]) -> np.ndarray:
        """p-values of columns i and j given each of `sets`."""
        return np.array([self.one(i, j, given) for given in sets])

    def one(self, i: int, j: int, given: tuple[int, ...]) -> float:
        a, b = self.sizes[i], self.sizes[j]
        stratum = np.zeros(self.n, int)
        for k in given:
            stratum = stratum * self.sizes[k] + self.codes[k]
        strata = int(np.prod([self.sizes[k] for k in given], dtype=float))
        if strata > 4 * self.n:  # more than can be counted one by one
            seen, stratum = np.unique(stratum, return_inverse=True)
            strata = len(seen)
        cell = (stratum * a + self.codes[i]) * b + self.codes[j]
        observed = np.bincount(cell, minlength=strata * a * b).reshape(-1, a, b)
        observed = observed[observed.any((1, 2))]
        rows, columns = observed.sum(2, keepdims=True), observed.sum(1, keepdims=True)
        expected = rows * columns / observed.sum((1, 2), keepdims=True)
        full = observed > 0
        g2 = 2 * (observed[full] * np.log(observed[full] / expected[full])).sum()
        values = (rows > 0).sum((1, 2)) - 1, (columns > 0).sum((1, 2)) - 1
        freedom = int(values[0] @ values[1])
        return float(chi2.sf(g2, freedom)) if freedom else 1.0


TESTS = {"fisher_z": FisherZ, "g2": G2}


def features(x: np.ndarray, width: float, tolerance: float = 1e-5) -> np.ndarray:
    """Columns G with G Gᵀ = K up to `tolerance` in the diagonal, K_ij = exp(−(x_i −
    x_j)² / 2 width²).

    Pivoted Cholesky: for one variable a Gaussian kernel has few large eigenvalues, so
    that some twenty columns do for any number of rows (Fine & Scheinberg 2001).

    Args:
        x: (n,).
        width: of the kernel, in the units of x.
    Returns:
        (n, columns).
    """
    left, columns = np.ones(len(x)), []
    while left.max() > tolerance and len(columns) < len(x):
        pivot = int(left.argmax())
        column = np.exp(-((x - x[pivot]) ** 2) / (2 * width**2))
        column -= sum(c * c[pivot] for c in columns)
        column /= left[pivot] ** 0.5
        columns.append(column)
        left = np.maximum(left - column**2, 0)
        left[pivot] = 0
    return np.stack(columns, 1)


def median_distance(x: np.ndarray) -> float:
    """The median of |x_i − x_j| over pairs of different values, of at most 500 of the
    ordered values, both ends among them."""
    some = np.sort(x)[np.linspace(0, len(x) - 1, min(len(x), 500)).astype(int)]
    apart = np.abs(some[:, None] - some)
    return float(np.median(apart[apart > 0]))


def hsic(x, y, permutations: int = 200, seed: int = 0) -> tuple[float, float]:
    """How dependent two variables are, and whether that could be chance (Gretton et al.
    2005, 2008).

    The statistic is tr(K H L H) / n², with Gaussian kernels K and L of the width of the
    median distance, H the centring matrix. Its p-value is the rank among the values for
    randomly paired x and y: uniform where they are independent, for data that nothing
    was fitted to.

    Args:
        x, y: (n,).
        permutations: random pairings; the smallest p-value is 1 / (permutations + 1).
    Returns:
        (statistic, p).
    Raises:
        ValueError: other lengths, fewer than 10 values, constants, values that are not
            finite.
    """
    x, y = check_pair(x, y, independent=False)
    check_count("permutations", permutations)
    a, b = (features(v, median_distance(v)) for v in (x, y))
    a, b = a - a.mean(0), b - b.mean(0)
    rng = np.random.default_rng(seed)
    statistic = float(np.square(a.T @ b).sum()) / len(x) ** 2
    by_chance = [np.square(a.T @ rng.permutation(b)).sum() for _ in range(permutations)]
    higher = np.sum(np.array(by_chance) / len(x) ** 2 >= statistic * (1 - 1e-12))
    return statistic, float((1 + higher) / (permutations + 1))
