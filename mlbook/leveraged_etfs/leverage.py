"""What a leveraged fund earns: by the day, and in the long run by formula."""

import pandas as pd

DAYS = 252  # trading days in a year


def simulate_leveraged(
    returns: pd.Series,
    leverage: float,
    rate: float | pd.Series = 0.0,
    fee: float = 0.0,
    spread: float = 0.0,
) -> pd.Series:
    """Daily returns of a fund that holds `leverage` times its capital, reset every day:
    L·ρ − (L − 1)·(rate + spread)/252 − fee/252 for L ≥ 1. It cannot lose more than everything.

    Args:
        returns: ρ, of the underlying, a day each (0.01 is one percent).
        leverage: L; below 1 the rest earns the rate, below 0 shares are sold short.
        rate, fee, spread: yearly fractions; the spread is paid on what is borrowed, dollars or shares.
    Raises:
        ValueError: `returns` below −1 or missing.
    """
    if not (returns >= -1).all():
        raise ValueError("returns must be at least −1, and none may be missing")
    borrowed = max(leverage - 1, 0) + max(
        -leverage, 0
    )  # dollars, and shares sold short
    paid = (leverage - 1) * rate + borrowed * spread
    return (leverage * returns - (paid + fee) / DAYS).clip(lower=-1.0)


def log_growth(leverage, mu: float, sigma: float, rate: float = 0.0, fee: float = 0.0):
    """Growth rate of the logarithm of an L-times fund on a geometric Brownian motion, a year:
    rate + L·(mu − rate) − L²·sigma²/2 − fee.

    Args:
        leverage: L, a number or an array.
        mu: drift of dS/S, that is E[S_t] = S_0·e^(mu·t); sigma: volatility; all yearly.
    """
    return rate + leverage * (mu - rate) - leverage**2 * sigma**2 / 2 - fee
