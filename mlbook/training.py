"""One training loop for the small models of the book."""

import copy
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    steps: int,
    lr: float = 4e-3,
    average: float = 0.999,
) -> tuple[nn.Module, list[float], float]:
    """Minimise `loss(model)` by Adam: warm-up over 200 steps, cosine decay to 1 % of `lr`, averaged weights.

    Args:
        model: trained in place.
        loss: draws its own batch and returns a scalar.
        steps: how many updates.
        lr: the peak learning rate.
        average: decay of the exponential moving average of the weights, shortened early on.
    Returns:
        the model with averaged weights, in evaluation mode; the losses, one a step; seconds taken.
    Raises:
        FloatingPointError: a loss is not finite; the step is named.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    averaged = copy.deepcopy(model)
    weights, targets = list(model.parameters()), list(averaged.parameters())
    optimizer = torch.optim.Adam(weights, lr=lr, betas=(0.9, 0.99), fused=True)
    history, start = [], time.perf_counter()
    for step in range(steps):
        decay = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = lr * decay * min(1.0, (step + 1) / 200)
        value = loss(model)
        history.append(value.item())
        if not math.isfinite(history[-1]):
            raise FloatingPointError(f"the loss is {history[-1]} at step {step}")
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(
                targets, weights, 1 - min(average, (step + 1) / (step + 10))
            )
    return averaged.eval().requires_grad_(False), history, time.perf_counter() - start
