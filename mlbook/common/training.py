"""One training loop for the small models of the book."""

import math
import numbers
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mlbook import scale_name


def fit(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    steps: int,
    lr: float = 4e-3,
    average: float = 0.999,
    warmup: int = 200,
) -> tuple[nn.Module, list[float], float]:
    """Minimise `loss(model)` by Adam: the learning rate rises to `lr` and falls along a cosine to 1 % of it, weights are averaged.

    Args:
        model: trained in place.
        loss: draws its own batch and returns a scalar.
        steps: how many updates.
        lr: the peak learning rate, reached whatever the number of steps.
        average: decay of the exponential moving average of the weights, shortened early on.
        warmup: steps over which a line from 0 holds the cosine down.
    Returns:
        the model with averaged weights, in evaluation mode; the losses, one a step; seconds taken.
    Raises:
        ValueError: steps or warmup is no whole number of at least 1 and 0.
        FloatingPointError: a loss is not finite; the step is named.
    """
    for name, value, least in (("steps", steps, 1), ("warmup", warmup, 0)):
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or value < least:
            raise ValueError(
                f"{name} must be a whole number, at least {least}, got {value!r}"
            )

    def moving(averaged: list[Tensor], current: list[Tensor], seen: Tensor) -> None:
        share = 1 - min(average, (1 + int(seen)) / (10 + int(seen)))
        torch._foreach_lerp_(averaged, current, share)

    shape = [
        (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        * min(1.0, (step + 1) / max(1, warmup))
        for step in range(steps)
    ]
    top = max(shape)

    averaged = AveragedModel(model, multi_avg_fn=moving)
    optimizer = torch.optim.Adam(model.parameters(), lr, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: shape[min(step, steps - 1)] / top
    )
    history, start = [], time.perf_counter()
    for step in range(steps):
        value = loss(model)
        history.append(value.item())
        if not math.isfinite(history[-1]):
            raise FloatingPointError(f"the loss is {history[-1]} at step {step}")
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        averaged.update_parameters(model)
    seconds = time.perf_counter() - start
    return averaged.module.eval().requires_grad_(False), history, seconds


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
