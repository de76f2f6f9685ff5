"""Token accuracy, as a causal model's has to be counted."""

import numpy as np

IGNORED = -100


def token_accuracy(predicted, labels) -> tuple[int, int]:
    """Tokens that were guessed rightly, and how many count: t guesses token t + 1.

    Args:
        predicted: (batch, length), the likeliest token at each position; or logits (batch, length, vocabulary).
        labels: (batch, length), the tokens themselves; −100 where a token does not count.
    Returns:
        right, counted.
    Raises:
        ValueError: shapes do not fit, or a prediction is NaN.
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if np.issubdtype(predicted.dtype, np.floating) and np.isnan(predicted).any():
        raise ValueError("a prediction is not a number")
    if predicted.ndim == 3:
        predicted = predicted.argmax(-1)
    if labels.ndim != 2 or predicted.shape != labels.shape:
        raise ValueError(
            f"predicted {predicted.shape} and labels {labels.shape}: not (batch, length)"
        )
    guesses, wanted = predicted[:, :-1], labels[:, 1:]
    counts = wanted != IGNORED
    return int((guesses == wanted)[counts].sum()), int(counts.sum())
