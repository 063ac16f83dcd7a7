"""The precisions a run can have, by name; known without torch, so that a wrong one is told soon."""

from __future__ import annotations

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Name in `trainer.precision` to torch's name of the type."""
