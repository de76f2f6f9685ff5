"""The room of the chapter on flow matching, in the order of its argument: paths and their loss (`paths`), following a
velocity (`solvers`), the chessboard in closed form (`board`), networks and guidance (`networks`)."""

from mlbook.flow_matching.board import (
    checkerboard,
    checkerboard_density,
    checkerboard_velocity,
    even_share,
    on_checkerboard,
    square_of,
)
from mlbook.flow_matching.networks import (
    CleanImageMLP,
    FourierFeatures,
    VelocityMLP,
    guided,
)
from mlbook.flow_matching.paths import (
    GaussianPath,
    Velocity,
    cfm_loss,
    cosine,
    linear,
    marginal_velocity,
    optimal_coupling,
    variance_preserving,
)
from mlbook.flow_matching.solvers import (
    EVALUATIONS,
    SOLVERS,
    euler,
    integrate,
    integrate_noisily,
    log_likelihood,
    midpoint,
    rk4,
    standard_normal_log_density,
    straightness,
    towards_one,
    with_divergence,
)

__all__ = [
    "EVALUATIONS",
    "SOLVERS",
    "CleanImageMLP",
    "FourierFeatures",
    "GaussianPath",
    "Velocity",
    "VelocityMLP",
    "cfm_loss",
    "checkerboard",
    "checkerboard_density",
    "checkerboard_velocity",
    "cosine",
    "euler",
    "even_share",
    "guided",
    "integrate",
    "integrate_noisily",
    "linear",
    "log_likelihood",
    "marginal_velocity",
    "midpoint",
    "on_checkerboard",
    "optimal_coupling",
    "rk4",
    "square_of",
    "standard_normal_log_density",
    "straightness",
    "towards_one",
    "variance_preserving",
    "with_divergence",
]
