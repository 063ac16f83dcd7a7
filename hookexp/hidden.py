"""A file of the user's that hides a module which others import, such as a `random.py`.

Imports next to nothing: what it would import may be what is hidden.
"""

from __future__ import annotations

import os
import sys

_STOOD_UPON = ("torch", "torchmetrics", "numpy", "hydra", "omegaconf", "yaml", "rich", "wandb")


def hidden_module(error: BaseException) -> str:
    """What to say where an error is about a module that a file of this folder hides; or nothing."""
    if not isinstance(error, (ImportError, AttributeError)):
        return ""
    for name in (*sys.stdlib_module_names, *_STOOD_UPON):
        file = getattr(sys.modules.get(name), "__file__", None) or ""
        is_here = os.path.dirname(os.path.abspath(file)) == os.getcwd()  # noqa: PTH100,PTH109,PTH120
        if file and is_here and (f"'{name}'" in str(error) or f"'{name}." in str(error)):
            return (
                f"{file}: hides the module {name} from all that imports it ({error}); give the "
                "file another name"
            )
    return ""
