"""One update of the averaged weights, against one flat lerp over the same bytes.

    python tests/bench/ema.py

Two models of bare parameters: the 161 tensors of a ResNet-50 (25.6 M), and 1,000 small ones. Ours
is the hook's own method in a run of ours; the others are what their hook or callback calls after a
step: MMEngine's `ExponentialMovingAverage`, Lightning's `EMAWeightAveraging`, torch's
`AveragedModel` with its multi-tensor function.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace

import timing
import torch
import workloads
from peers import installed
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

MOMENTUM = 0.0002


def resnet50_shapes() -> list[tuple[int, ...]]:
    """Shapes of the parameters of a ResNet-50 for 1,000 classes, in its own order."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    channels_in = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for shape in (
                (width, channels_in, 1, 1),
                (width, width, 3, 3),
                (4 * width, width, 1, 1),
            ):
                shapes += [shape, shape[:1], shape[:1]]
            if block == 0:
                shapes += [(4 * width, channels_in, 1, 1), (4 * width,), (4 * width,)]
            channels_in = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


class Parameters(nn.Module):
    """Nothing but parameters of given shapes."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])


def timed(update: Callable[[], object], calls: int) -> Callable[[], float]:
    """Milliseconds of one call, the least of a few."""
    update()

    def measure() -> float:
        best = float("inf")
        for _ in range(calls):
            began = time.perf_counter()
            update()
            best = min(best, time.perf_counter() - began)
        return best * 1e3

    return measure


def our_update(model: nn.Module) -> Callable[[], object]:
    runner = workloads.build(workloads.TINY, 1, "hooks=none", "+hooks/ema=default")
    runner.model = model
    ema = runner.hooks["ema"]
    assert ema.momentum == MOMENTUM
    ema.before_train(runner)
    return lambda: ema.after_optim_step(runner)


def mmengine_update(model: nn.Module) -> Callable[[], object]:
    from mmengine.model import ExponentialMovingAverage

    averaged = ExponentialMovingAverage(model, momentum=MOMENTUM)
    return lambda: averaged.update_parameters(model)


def lightning_update(model: nn.Module) -> Callable[[], object]:
    import lightning
    from lightning.pytorch.callbacks import EMAWeightAveraging

    module = lightning.LightningModule()
    module.net = model
    callback = EMAWeightAveraging(decay=1 - MOMENTUM)
    trainer = SimpleNamespace(global_step=0)
    callback.setup(trainer, module, "fit")

    def update() -> None:
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, None, 0)

    return update


def torch_update(model: nn.Module) -> Callable[[], object]:
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(1 - MOMENTUM))
    return lambda: averaged.update_parameters(model)


def flat_update(model: nn.Module) -> Callable[[], object]:
    weights = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    average = weights.clone()
    return lambda: average.lerp_(weights, MOMENTUM)


def measured(shapes: list[tuple[int, ...]], calls: int, repeats: int, peers: bool) -> list:
    model = Parameters(shapes)
    makers = {"one flat lerp": flat_update, "ours": our_update, "torch, multi-tensor": torch_update}
    if peers and installed()["MMEngine"]:
        makers["MMEngine"] = mmengine_update
    if peers and installed()["Lightning"]:
        makers["Lightning"] = lightning_update
    cases = {name: timed(make(model), calls) for name, make in makers.items()}
    return list(timing.least(cases, repeats).items())


def main() -> None:
    arguments = timing.arguments(__doc__, repeats=7)
    torch.set_num_threads(1)
    peers = not arguments.no_peers
    shapes = resnet50_shapes()
    num_parameters = sum(torch.Size(shape).numel() for shape in shapes)
    assert (len(shapes), num_parameters) == (161, 25_557_032)
    large = measured(shapes, 3, arguments.repeats, peers)
    small = measured([(64,)] * 1000, 10, arguments.repeats, peers)
    timing.print_environment()
    for title, results, target in (
        ("25.6 M parameters in 161 tensors", large, "1.05 x"),
        ("1,000 tensors of 64", small, "0.75 ms"),
    ):
        flat = results[0][1]
        rows = [
            (name, f"{ms:.3f}", f"{ms - flat:+.3f}", f"{ms / flat:.2f}", target * (name == "ours"))
            for name, ms in results
        ]
        timing.print_table((title, "ms", "beyond, ms", "ratio", "target"), rows)
        print()


if __name__ == "__main__":
    main()
