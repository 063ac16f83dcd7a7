"""What one job leaves in the process: see also the tests of sweeps."""

from __future__ import annotations

import torch
import torch._dynamo

from hookexp.compose.isolation import restored_process_state


def test_only_after_a_job_that_compiled_the_compiler_is_reset(monkeypatch):
    """On a machine with a GPU that imports all of Inductor, which takes seconds."""
    resets = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(True))
    monkeypatch.setattr(torch._dynamo.convert_frame, "FRAME_COUNTER", 0)
    with restored_process_state():
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1).step()
    assert not resets
    with restored_process_state():
        torch.compile(lambda x: x + 1, backend="eager")(torch.zeros(1))
    assert resets == [True]
