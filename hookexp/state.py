"""`RunState`: how far a run has come, what comes next, and what hooks have asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any


class Phase(str, Enum):
    """What the train loop does next. Saved with a checkpoint, so that a resume enters there."""

    TRAIN = "train"
    VALIDATE = "validate"


@dataclass(frozen=True)
class SaveRequest:
    """A checkpoint that a hook has asked for; the loop writes it at its next safe point."""

    filename: str
    with_optimizer: bool = True
    with_param_schedulers: bool = True
    obsolete: tuple[str, ...] = ()
    """File names that may go once this one is safe on the disk."""
    points_last: bool = True
    """Whether `last_checkpoint` should name this file."""
    in_background: bool = True
    """Whether training goes on while it is written."""
    weights_alone: bool = False
    """Without all that a resumed run needs, since it would not be that of one moment."""


@dataclass(frozen=True)
class StopRequest:
    """An end of the run that a hook has asked for."""

    reason: str
    urgent: bool


@dataclass
class FetchClock:
    """When the loop asked for the current batch and when it had it, by `time.perf_counter`."""

    began: float = 0.0
    ended: float = 0.0


@dataclass
class RunState:
    """Counters advance when the thing they count is finished."""

    epoch: int = 0
    iter: int = 0
    batch_in_epoch: int = 0
    """Batches of the current epoch that were trained on."""
    optim_steps: int = 0
    phase: Phase = Phase.TRAIN
    stop_reason: str = ""
    """Why training ends early; empty while nobody has asked for that."""
    final_reason: str = ""
    """The same where it ends for good. An urgent stop leaves the rest to a resumed run."""
    exit_code: int = 0
    """What the process should leave with because a signal stopped it."""
    save_requests: list[SaveRequest] = field(default_factory=list)
    asked: list[SaveRequest | StopRequest] = field(default_factory=list)
    """What hooks of this rank want and the ranks have yet to agree on."""
    urgent_reason: str = ""
    """Why this rank has to stop at once; all do when they have told each other."""
    stop_is_urgent: bool = False
    """Whether to leave at once, so that what is due next is left to the resumed run."""
    is_sound: bool = False
    """Whether all parts of the run stand at the same iteration, so that it could continue here."""
    is_stepping: bool = False
    """Whether an optimizer is at work, so that some weights may be new and some old."""
    is_alone: bool = True
    """Whether there are no other ranks."""

    def stop_urgently(self, reason: str) -> None:
        """Stop for a reason that other ranks may not have, such as a signal: at a point of all."""
        self.urgent_reason = self.urgent_reason or reason
        if self.is_alone:
            self.stop(reason, urgent=True)

    def stop(self, reason: str, urgent: bool = False) -> None:
        """Ask the train loop to end at its next safe point; the first reason stays.

        A validation that is due is still run, unless the stop is urgent. On several ranks it is the
        next safe point if all ask before it, else one shortly after.
        """
        self._ask(StopRequest(reason, urgent))

    def request_save(self, request: SaveRequest) -> None:
        """Ask the train loop to write a checkpoint at its next safe point.

        On several ranks as with `stop`; the weights alone a rank saves by itself.

        Raises:
            ValueError: for a name that is none of a file, or leads to another folder.
        """
        name = request.filename
        if not isinstance(name, str) or not name.strip(".") or Path(name).name != name:
            raise ValueError(
                f"a checkpoint cannot be called {str(name)!r}: use a plain file name, such as "
                "'mine.pth'; it is written beside the others"
            )
        if request.weights_alone:
            self.grant(request)
        else:
            self._ask(request)

    def _ask(self, request: SaveRequest | StopRequest) -> None:
        if self.is_alone:
            self.grant(request)
        else:
            self.asked.append(request)

    def grant(self, request: SaveRequest | StopRequest) -> None:
        """Have it done at this safe point, or at the next one. Ranks do so together."""
        if isinstance(request, SaveRequest):
            self.save_requests.append(request)
            return
        if not request.urgent:
            self.final_reason = self.final_reason or request.reason
        self.stop_reason = self.stop_reason or request.reason
        self.stop_is_urgent = self.stop_is_urgent or request.urgent

    @property
    def is_to_stop(self) -> bool:
        """Whether training ends early, or a hook has asked for that."""
        return bool(self.stop_reason) or any(isinstance(one, StopRequest) for one in self.asked)

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "iter": self.iter,
            "batch_in_epoch": self.batch_in_epoch,
            "optim_steps": self.optim_steps,
            "phase": self.phase.value,
            "final_reason": self.final_reason,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.iter = state["iter"]
        self.batch_in_epoch = state["batch_in_epoch"]
        self.optim_steps = state["optim_steps"]
        self.phase = Phase(state["phase"])
