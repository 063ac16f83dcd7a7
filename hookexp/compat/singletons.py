"""MMEngine's global objects, answering with the parts of the run.

    MessageHub.get_current_instance()    the run's message hub
    Visualizer.get_current_instance()    the run's sinks
    MMLogger.get_current_instance()      the run's logger

There they exist before hooks are made, and hooks ask for them in constructors too. So they are
offered before, empty, and bound when the run is there. Nothing happens where MMEngine is not
imported. A visualizer that the hooks' own package has made stays the current one, and gets the
sinks as a backend. They hold the run weakly: what they show goes when it goes.
"""

from __future__ import annotations

import logging
import pkgutil
import sys
import weakref
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from hookexp.compat.hub_view import HubView
from hookexp.compat.visualizer_view import VisualizerView
from hookexp.message_hub import MessageHub

if TYPE_CHECKING:
    from hookexp.compat.runner_view import RunnerView

_NAME = "hookexp"
_offered: list[tuple[HubView, VisualizerView]] = []


def offer(targets: Iterable[str]) -> None:
    """Put empty instances in place, before hooks of these dotted paths are made.

    Their modules are imported for it; one that cannot be is left to whoever makes the hook.
    """
    for target in targets:
        if not target.startswith("hookexp."):
            with suppress(Exception):
                pkgutil.resolve_name(target)
    _offered[:] = [(HubView(MessageHub()), VisualizerView(None, find_runner=_no_run))]
    _install(*_offered[0])


def bind(view: RunnerView) -> tuple[HubView, Any]:
    """Have the instances show the run of a view; returns its hub and its visualizer."""
    hub, visualizer = _offered.pop() if _offered else (HubView(None), VisualizerView(None))
    run_hub = vars(view)["_viewed"].message_hub
    early = vars(hub)["_viewed"]
    for key, value in {} if early is None else early.infos.items():
        run_hub.update_info(key, value, keep=key in early.kept_infos)
    vars(hub)["_viewed"] = run_hub
    vars(visualizer)["find_runner"] = weakref.ref(view)
    return hub, _install(hub, visualizer)


def _install(hub: HubView, visualizer: VisualizerView) -> Any:
    """Put the instances last, which makes them the current ones; returns the visualizer that is."""
    _make_current("mmengine.logging", "MessageHub", hub)
    _make_current("mmengine.logging", "MMLogger", logging.getLogger("hookexp"))
    instances = _instances("mmengine.visualization", "Visualizer")
    others = [instances[name] for name in instances if name != _NAME]
    if not others:
        _make_current("mmengine.visualization", "Visualizer", visualizer)
        return visualizer
    instances.pop(_NAME, None)
    others[-1]._vis_backends[_NAME] = visualizer
    return others[-1]


def _make_current(module: str, class_name: str, instance: Any) -> None:
    instances = _instances(module, class_name)
    instances.pop(_NAME, None)
    instances[_NAME] = instance


def _instances(module: str, class_name: str) -> dict[str, Any]:
    """The instances of a class by name; of one that is not imported an empty dict."""
    instances: dict[str, Any] = getattr(
        getattr(sys.modules.get(module), class_name, None), "_instance_dict", {}
    )
    return instances


def _no_run() -> None:
    return None
