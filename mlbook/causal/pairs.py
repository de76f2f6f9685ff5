"""Which of two variables is the cause: what each method answers, and pairs whose answer
is known."""

import io
import warnings

import numpy as np
import pandas as pd
from scipy.special import digamma
from statsmodels.regression.quantile_regression import QuantReg
from statsmodels.tools.sm_exceptions import IterationLimitWarning

from mlbook.causal.borders import check_pair
from mlbook.causal.independence import features
from mlbook.causal.lingam import likelihood_ratios, standard
from mlbook.common import packaged

CDT = "cdt==0.6.0"
PAIRS = "e3726459486cf50642de62ce4ceb35669100f6867bd564863b4663546c1393cf"


def tuebingen() -> list[tuple[np.ndarray, np.ndarray]]:
    """The 99 pairs of a cause and its effect that the package CDT carries, in this
    order: the cause first, in every one.

    Whoever measures a method on them must swap some at random. From Mooij et al. 2016,
    licences as told there.
    """
    path = packaged.file("cdt/data/resources/Tuebingen_pairs.csv", CDT)
    table = pd.read_csv(io.BytesIO(packaged.check(path, PAIRS)))
    return [
        tuple(np.array(text.split(), float) for text in pair)
        for pair in zip(table["A"], table["B"], strict=True)
    ]


def pair_lingam(x, y) -> float:
    """The log-likelihood ratio per observation of x → y against y → x in a linear model
    (Hyvärinen & Smith 2013): positive where x is the likelier cause."""
    return float(likelihood_ratios(standard(np.stack(check_pair(x, y), 1)).T)[0, 1])


def igci(x, y) -> float:
    """Entropy of x less that of y, both stretched to [0, 1]: positive where x is the
    likelier cause (Janzing et al. 2012, uniform reference).

    If y = f(x) without noise, and f is chosen independently of x's density, then y's
    density is high where f is flat, and its entropy is smaller.

    Raises:
        ValueError: what `borders.check_pair` refuses.
    """
    a, b = (entropy_by_spacings((v - v.min()) / np.ptp(v)) for v in check_pair(x, y))
    return a - b


def entropy_by_spacings(x: np.ndarray) -> float:
    """Differential entropy in nats from the distances of neighbours, equal values apart
    (Kraskov et al. 2004)."""
    apart = np.diff(np.sort(x))
    apart = apart[apart > 0]
    return float(np.log(apart).mean() + digamma(len(x)) - digamma(1))


def quantile_score(x, y, levels=(0.1, 0.3, 0.5, 0.7, 0.9)) -> float:
    """How much shorter the description "x, then y given x" is than the other, as a
    share: positive where x is the likelier cause (bQCD, Tagasovska, Chavez-Demoulin &
    Vatter 2020).

    Kolmogorov's idea: the true direction has the shorter description. The pinball loss
    of quantile regressions stands in for the length.

    Raises:
        ValueError: what `borders.check_pair` refuses.
    """
    x, y = standard(np.stack(check_pair(x, y), 1)).T

    def pinball(effect, cause, level):
        design = np.ones((len(effect), 1))
        if cause is not None:
            bends = features(cause, 1.0, 1e-2)
            design = np.column_stack([design, cause, bends - bends.mean(0)])
        with warnings.catch_warnings():
            # its weights may swing in the sixth digit for ever
            warnings.simplefilter("ignore", IterationLimitWarning)
            line = QuantReg(effect, design).fit(level, p_tol=1e-4)
        left = effect - line.fittedvalues
        return np.mean(np.maximum(level * left, (level - 1) * left))

    def length(cause, effect):
        return sum(pinball(cause, None, q) + pinball(effect, cause, q) for q in levels)

    forward, backward = length(x, y), length(y, x)
    return float((backward - forward) / (backward + forward))
