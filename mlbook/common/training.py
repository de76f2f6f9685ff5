"""One training loop for the small models of the book."""

import copy
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from mlbook import scale_name


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    steps: int,
    lr: float = 4e-3,
    average: float = 0.999,
    warmup: int = 200,
) -> tuple[nn.Module, list[float], float]:
    """Minimise `loss(model)` by Adam: linear warm-up, cosine decay to 1 % of `lr`, averaged weights.

    Args:
        model: trained in place.
        loss: draws its own batch and returns a scalar.
        steps: how many updates.
        lr: the peak learning rate.
        average: decay of the exponential moving average of the weights, shortened early on.
        warmup: steps over which the learning rate rises.
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
        optimizer.param_groups[0]["lr"] = lr * decay * min(1.0, (step + 1) / warmup)
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


def side_by_side(function: Callable, arguments: Iterable) -> list:
    """`[function(a) for a in arguments]`, as many at a time as torch has threads, each with one; one by one on a GPU.

    For small models, whose operations are too short to be worth dividing. What is random in `function` must come from
    generators of its own.
    """
    workers = 1 if scale_name() == "gpu" else torch.get_num_threads()
    if workers == 1:
        return [function(a) for a in arguments]
    try:
        with ThreadPoolExecutor(
            workers, initializer=torch.set_num_threads, initargs=(1,)
        ) as pool:
            return list(pool.map(function, arguments))
    finally:
        torch.set_num_threads(workers)
