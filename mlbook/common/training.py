"""One training loop for the small models of the book."""

import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mlbook import scale_name
from mlbook.common.checks import check_count


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
        average: decay of the exponential moving average of the weights, shortened early on as by diffusers' EMAModel
            (with torch's constant decay a short training would keep the weights it began with).
        warmup: steps over which a line from 0 holds the cosine down.
    Returns:
        the model with averaged weights, in evaluation mode; the losses, one a step; seconds taken.
    Raises:
        ValueError: steps or warmup is no whole number of at least 1 and 0, or average lies outside [0, 1).
        FloatingPointError: a loss is not finite, and the step is named; or the weights are not, at the end.
    """
    steps, warmup = check_count("steps", steps), check_count("warmup", warmup, 0)
    if not 0 <= average < 1:
        raise ValueError(f"average must be at least 0 and below 1, got {average}")

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
    if not all(torch.isfinite(weights).all() for weights in averaged.parameters()):
        raise FloatingPointError(f"weights are not finite after {steps} steps")
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
