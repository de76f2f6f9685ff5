"""One training loop for the small models of the book."""

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from mlbook import scale_name
from mlbook.common.checks import check_count

EVERY = 10  # steps from one update of the averaged weights to the next: each costs as much as a small network's forward pass


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
        average: decay, per step, of the exponential moving average of the weights, in [0, 1); less early on, as in
            diffusers' EMAModel. It is updated every tenth step.
        warmup: steps over which a line from 0 holds the cosine down.
    Returns:
        the model with averaged weights, in evaluation mode; the losses, one a step; seconds taken.
    Raises:
        ValueError: steps or warmup is no whole number of at least 1 and 0, or average lies outside [0, 1).
        FloatingPointError: a loss is not finite (the step is named), or the weights are not at the end.
    """
    steps, warmup = check_count("steps", steps), check_count("warmup", warmup, 0)
    if not 0 <= average < 1:
        raise ValueError(f"average must lie in [0, 1), got {average}")

    def moving(averaged: list[Tensor], current: list[Tensor], seen: Tensor) -> None:
        share = 1 - min(average**EVERY, (1 + int(seen)) / (10 + int(seen)))
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
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            averaged.update_parameters(model)
    seconds = time.perf_counter() - start
    if not all(p.isfinite().all() for p in averaged.parameters()):
        raise FloatingPointError("the weights are not finite at the end")
    return averaged.module.eval().requires_grad_(False), history, seconds


class Ensemble(nn.Module):
    """Networks of one shape, computed at once: each answers its own equal part of the rows, in order.

    A sum of their losses trains each as if it were alone, since Adam treats every number by itself. Small networks train
    several times faster so: what they compute takes less time than the calls.

    Raises:
        ValueError: there is no network, or one of another shape than the first.
    """

    def __init__(self, networks: Sequence[nn.Module]):
        super().__init__()
        shapes = [{k: v.shape for k, v in n.state_dict().items()} for n in networks]
        if not networks or any(other != shapes[0] for other in shapes):
            sizes = [sum(p.numel() for p in n.parameters()) for n in networks]
            raise ValueError(
                f"an ensemble takes networks of one shape, got {len(sizes)} of {sizes} parameters"
            )
        self._one = (copy.deepcopy(networks[0]),)  # in a tuple: no parameters of ours
        weights, buffers = torch.func.stack_module_state(list(networks))
        self._names = list(weights)
        self.weights = nn.ParameterList(w.detach() for w in weights.values())
        for name, value in buffers.items():
            self.register_buffer(name.replace(".", "/"), value)

    def __len__(self) -> int:
        return len(self.weights[0])

    def forward(self, *rows: Tensor) -> Tensor:
        """The answers to `rows`, (networks · batch, …) each.

        Raises:
            ValueError: the rows cannot be divided evenly.
        """
        if len(rows[0]) % len(self):
            raise ValueError(f"{len(self)} networks cannot share {len(rows[0])} rows")

        def one(weights: dict, buffers: dict, *rows: Tensor) -> Tensor:
            return torch.func.functional_call(self._one[0], (weights, buffers), rows)

        parts = [value.unflatten(0, (len(self), -1)) for value in rows]
        return torch.func.vmap(one)(*self._state(), *parts).flatten(0, 1)

    def split(self) -> list[nn.Module]:
        """The networks, apart and in evaluation mode."""
        networks = [copy.deepcopy(self._one[0]) for _ in range(len(self))]
        weights, buffers = self._state()
        for i, network in enumerate(networks):
            network.load_state_dict({k: v[i] for k, v in (weights | buffers).items()})
            network.eval().requires_grad_(False)
        return networks

    def _state(self) -> tuple[dict, dict]:
        weights = dict(zip(self._names, self.weights, strict=True))
        return weights, {k.replace("/", "."): v for k, v in self.named_buffers()}


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
