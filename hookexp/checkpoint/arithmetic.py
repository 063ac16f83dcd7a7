"""What the last bits of results depend on beside a run's state: versions, processor, threads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def arithmetic_of(device: torch.device) -> dict[str, Any]:
    """By what a run computes on a device, as plain values."""
    found: dict[str, Any] = {"torch": str(torch.__version__), "device": device.type}
    if device.type == "cuda":
        found["GPU"] = torch.cuda.get_device_name(device)
        found["cuDNN"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    if device.type == "cpu":
        found["instructions"] = torch.backends.cpu.get_cpu_capability()
        found["threads"] = torch.get_num_threads()
    return found


def what_differs(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What has changed between two of them, in words, with what to type; empty if nothing has."""
    changed = [key for key, value in now.items() if then.get(key, value) != value]
    if not changed:
        return ""
    told = ", ".join(f"{key} {now[key]} (was {then[key]})" for key in changed)
    way_out = f"; OMP_NUM_THREADS={then['threads']} sets as many" if "threads" in changed else ""
    return f"{told}, so the last bits of results may not be those of a run never stopped{way_out}"
