"""`MessageHub`: where hooks leave numbers for each other.

Scalars stay where they are, detached, until somebody reads them, so that writing one never makes
the host wait for the device; many cross in one copy, once. Windows are bounded, so the cost of an
iteration does not grow with the length of the run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from hookexp.errors import kind_of
from hookexp.numeric import stands_for_one

Scalar = float | int | Tensor


@dataclass(frozen=True)
class Artifact:
    """A file written by a hook, to be forwarded to the sinks by the logger."""

    name: str
    path: Path


@dataclass(frozen=True)
class Image:
    """A picture made by a hook, uint8 of shape (3, height, width), for the sinks."""

    name: str
    pixels: Tensor


class ScalarWindow:
    """The last values of one scalar. Every reading here makes the host wait for the device."""

    def __init__(self, length: int) -> None:
        self.values: deque[Scalar] = deque(maxlen=length)

    def current(self) -> float:
        return float(self.values[-1])

    def mean(self, window: int | None = None) -> float:
        recent = self.recent(window)
        return sum(map(float, recent)) / len(recent)

    def min(self, window: int | None = None) -> float:
        return min(map(float, self.recent(window)))

    def max(self, window: int | None = None) -> float:
        return max(map(float, self.recent(window)))

    def recent(self, window: int | None = None) -> list[Scalar]:
        """The last `window` values, oldest first; all that are kept if None."""
        skipped = 0 if window is None else max(len(self.values) - window, 0)
        return list(islice(self.values, skipped, None))


class MessageHub:
    """Scalars by name (`train/loss`), gauges read on demand, infos, and files for the sinks.

    Args:
        window: how many values of each scalar are kept.
    """

    def __init__(self, window: int = 100) -> None:
        self.window = window
        self.scalars: dict[str, ScalarWindow] = {}
        self.gauges: dict[str, Callable[[], float]] = {}
        self.infos: dict[str, Any] = {}
        self.kept_infos: set[str] = set()
        self.outbox: list[Artifact | Image] = []

    def update_scalar(self, key: str, value: Scalar) -> None:
        """Add a value; a tensor of one element stays on its device.

        Raises:
            ValueError: for a tensor of another size, and what is no number.
        """
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(
                    f"scalar {key!r} is a tensor of shape {tuple(value.shape)}; give its mean, or "
                    "one name to each element"
                )
            value = value.detach()
        elif type(value) is not float and not isinstance(value, Real):
            if not stands_for_one(value):
                raise ValueError(f"scalar {key!r} is {kind_of(value)}, and no number")
            value = float(value)
        try:
            self.scalars[key].values.append(value)
        except KeyError:
            self.scalars[key] = ScalarWindow(self.window)
            self.scalars[key].values.append(value)

    def replace_scalar(self, key: str, value: Scalar) -> None:
        """Make a value the only one: a row of the log is a mean over those that are kept."""
        if key in self.scalars:
            self.scalars[key].values.clear()
        self.update_scalar(key, value)

    def update_scalars(self, scalars: Mapping[str, Scalar]) -> None:
        for key, value in scalars.items():
            self.update_scalar(key, value)

    def set_gauge(self, key: str, read: Callable[[], float]) -> None:
        """Register a number that is computed when somebody reads it, such as peak memory."""
        self.gauges[key] = read

    def get_scalar(self, key: str) -> ScalarWindow:
        if key not in self.scalars:
            raise KeyError(f"no scalar {key!r}; there are: {', '.join(sorted(self.scalars))}")
        return self.scalars[key]

    def update_info(self, key: str, value: Any, keep: bool = False) -> None:
        """Set an info; `keep` puts it into checkpoints, for which it has to be of plain types."""
        self.infos[key] = value
        (self.kept_infos.add if keep else self.kept_infos.discard)(key)

    def pop_info(self, key: str, default: Any = None) -> Any:
        """Take an info out."""
        self.kept_infos.discard(key)
        return self.infos.pop(key, default)

    def get_info(self, key: str, default: Any = None) -> Any:
        return self.infos.get(key, default)

    def post_artifact(self, name: str, path: Path) -> None:
        """Hand a written file to the logger, which forwards it to the sinks."""
        self.outbox.append(Artifact(name, path))

    def post_image(self, name: str, pixels: Tensor) -> None:
        """Hand a picture (uint8, shape (3, height, width)) to the logger, for the sinks."""
        self.outbox.append(Image(name, pixels))

    def set_window(self, window: int) -> None:
        """Keep at least `window` values of each scalar."""
        if window <= self.window:
            return
        self.window = window
        for scalar in self.scalars.values():
            scalar.values = deque(scalar.values, maxlen=window)

    def clear(self, prefix: str) -> None:
        """Forget the values of all scalars whose name starts with `prefix`."""
        for key, scalar in self.scalars.items():
            if key.startswith(prefix):
                scalar.values.clear()

    def read(self, prefix: str, window: int, latest: Iterable[str] = ()) -> dict[str, float]:
        """Means over the last `window` values of the scalars under `prefix`, in one copy.

        Args:
            prefix: such as `train/`; it is cut from the names returned.
            window: number of values a mean is taken over.
            latest: names, without prefix, of which the last value counts instead; `lr` means
                `lr/1` too.
        """
        latest = set(latest)
        read = {k: s for k, s in self.scalars.items() if k.startswith(prefix) and s.values}
        _bring_to_host(read.values(), window)
        means = {}
        for key, scalar in read.items():
            name = key.removeprefix(prefix)
            is_latest = name.partition("/")[0] in latest
            means[name] = scalar.current() if is_latest else scalar.mean(window)
        for key, gauge in self.gauges.items():
            if key.startswith(prefix):
                means[key.removeprefix(prefix)] = gauge()
        return means

    def to_host(self, tensors: Sequence[Tensor]) -> list[float]:
        """The values of tensors of one element; scalars that are on a device come in the same copy.

        A hook that has to look at a result makes the host wait for the device; read like this,
        the logger does not have to wait once more in the same iteration.
        """
        return _bring_to_host(self.scalars.values(), self.window, tensors)

    def state_dict(self) -> dict[str, Any]:
        self.to_host(())
        windows = {key: list(map(float, s.values)) for key, s in self.scalars.items()}
        infos = {key: self.infos[key] for key in sorted(self.kept_infos)}
        return {"scalars": windows, "infos": infos}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, values in state["scalars"].items():
            self.scalars[key] = ScalarWindow(self.window)
            self.scalars[key].values.extend(values)
        for key, value in state.get("infos", {}).items():
            self.update_info(key, value, keep=True)


_ONLY_FLOATS = frozenset((float,))
"""Most scalars never were on a device, which is seen without a look at each value."""


def _bring_to_host(
    scalars: Iterable[ScalarWindow], window: int, tensors: Sequence[Tensor] = ()
) -> list[float]:
    """Replace the tensors among the last `window` values of scalars by numbers.

    Returns:
        The values of `tensors`, which crossed with them.
    """
    found, places = list(tensors), []
    for scalar in scalars:
        recent = scalar.recent(window)
        if _ONLY_FLOATS.issuperset(map(type, recent)):
            continue
        for index, value in enumerate(recent, start=len(scalar.values) - len(recent)):
            if isinstance(value, Tensor):
                found.append(value)
                places.append((scalar.values, index))
    numbers = _to_floats(found)
    for (values, index), number in zip(places, numbers[len(tensors) :], strict=True):
        values[index] = number
    return numbers[: len(tensors)]


def _to_floats(tensors: list[Tensor]) -> list[float]:
    """The values of tensors of one element; those of one device are copied to the host together."""
    by_device: dict[torch.device, list[int]] = {}
    for index, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(index)
    if len(by_device) == 1:
        return _of_one_device(tensors)
    floats = [0.0] * len(tensors)
    for indices in by_device.values():
        numbers = _of_one_device([tensors[i] for i in indices])
        for index, number in zip(indices, numbers, strict=True):
            floats[index] = number
    return floats


def _of_one_device(tensors: list[Tensor]) -> list[float]:
    """The values of tensors of one element each, in one copy, none of them rounded."""
    if any(tensor.dtype is not torch.float32 or tensor.dim() for tensor in tensors):
        exact = torch.float32 if tensors[0].device.type == "mps" else torch.float64
        tensors = [tensor.reshape(()).to(exact) for tensor in tensors]
    return cast(list[float], torch.stack(tensors).tolist())


def scalars_to_floats(scalars: Mapping[str, Scalar]) -> dict[str, float]:
    """A dict of numbers and one-element tensors as floats, one copy for each device."""
    tensors = {name: value for name, value in scalars.items() if isinstance(value, Tensor)}
    numbers = dict(zip(tensors, _to_floats(list(tensors.values())), strict=True))
    return {n: numbers[n] if n in numbers else float(value) for n, value in scalars.items()}
