"""`Meeting`: whether all ranks ask for something at the same safe point, or some of them alone.

A rank that asks says at which point it is, in the store by which the ranks have found each other,
and waits for their answers. One that asks there too says the same. One that has gone on may be
waiting for the first one by then, for its gradients: a thread answers for it. So ranks that ask for
nothing do nothing at a safe point but count it.
"""

from __future__ import annotations

import time
from contextlib import suppress
from threading import Event, Lock, Thread
from typing import Any
from uuid import uuid4

import torch.distributed as td

from hookexp import dist

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_OF_FIRST_WAIT, _SECONDS_OF_LONGEST_WAIT = 0.001, 0.05


class Meeting:
    """Entered by all ranks; `begin_anew` and `go_on` are called by all, as often by each.

    Its place in the store is a new one: torchrun keeps the store when it restarts the ranks.
    """

    def __init__(self) -> None:
        store: Any = td.distributed_c10d._get_default_store()  # Its types lack `timeout`.
        self._store = td.distributed_c10d.PrefixStore(dist.broadcast(uuid4().hex), store)
        self._longest_wait = store.timeout.total_seconds()
        self._point = self._question = 0
        self._has_answered = False
        self._lock = Lock()
        self._is_over = Event()
        self._thread = Thread(target=self._answer_others, daemon=True, name="meeting")

    def __enter__(self) -> Meeting:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        """A rank that has failed says that it asks for nothing, so that none waits for it."""
        self._is_over.set()
        self._thread.join()
        with suppress(RuntimeError), self._lock:
            if kind is not None and not self._has_answered:
                self._answer()

    def all_ask(self) -> bool:
        """Whether all ranks do at this point; returns once each has come to it, or gone on.

        Raises:
            RuntimeError: where one does not come, in the time that ranks wait for each other.
        """
        with self._lock:
            if self._has_answered:
                return False
            self._tell_where()
            self._num_here(1)
            self._answer()
        seconds, until = _SECONDS_OF_FIRST_WAIT, time.monotonic() + self._longest_wait
        while not self._store.check([self._key("all")]):
            if time.monotonic() > until:
                raise RuntimeError(
                    "a rank has not come to the safe point of the others in "
                    f"{self._longest_wait:.0f} seconds: it was killed, or hangs"
                )
            time.sleep(seconds)
            seconds = min(1.5 * seconds, _SECONDS_OF_LONGEST_WAIT)
        return self._num_here(0) == dist.world_size()

    def go_on(self) -> None:
        """Leave a safe point."""
        self._point += 1

    def begin_anew(self) -> None:
        """Ranks have told each other everything, and may ask again."""
        with self._lock:
            self._question += 1
            self._has_answered = False

    def _answer_others(self) -> None:
        with suppress(RuntimeError):  # The store is gone when another rank has failed.
            while not self._is_over.wait(_SECONDS_BETWEEN_LOOKS):
                with self._lock:
                    if not self._has_answered and self._has_left_others_behind():
                        self._answer()

    def _has_left_others_behind(self) -> bool:
        where = self._key("where")
        return self._store.check([where]) and int(self._store.get(where)) < self._point

    def _tell_where(self) -> None:
        """The earliest point at which a rank asks."""
        where, here = self._key("where"), str(self._point)
        known = self._store.compare_set(where, "", here).decode()
        while int(known) > self._point:
            known = self._store.compare_set(where, known, here).decode()

    def _num_here(self, more: int) -> int:
        """How many ranks ask at this point."""
        return self._store.add(self._key(f"at {self._point}"), more)

    def _answer(self) -> None:
        self._has_answered = True
        if self._store.add(self._key("answers"), 1) == dist.world_size():
            self._store.set(self._key("all"), "")

    def _key(self, name: str) -> str:
        return f"{self._question}/{name}"
