"""`View`: an object under other names, that passes for a class of a package it does not import."""

from __future__ import annotations

import sys
from typing import Any


class View:
    """Everything that a subclass does not define is the viewed object's, to read and to set.

    `isinstance(view, C)` looks at `__class__` too, which here is the class that the code on the
    other side knows, where its package is imported at all. So such code can ask what it has, and
    this project needs no other framework to be installed.
    """

    published: tuple[str, str] | None = None
    """Module and name of the class a view passes for."""

    def __init__(self, viewed: Any, **own: Any) -> None:
        vars(self).update(_viewed=viewed, **own)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        module, name = self.published or ("", "")
        found = getattr(sys.modules.get(module), name, None)
        return found if isinstance(found, type) else type(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_viewed"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        attribute = getattr(type(self), name, None)
        if name in vars(self):
            vars(self)[name] = value
        elif isinstance(attribute, property) and attribute.fset is not None:
            attribute.fset(self, value)
        else:
            setattr(vars(self)["_viewed"], name, value)
