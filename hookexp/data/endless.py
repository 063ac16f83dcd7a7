"""`EndlessBatches`: a second stream of batches, for a task that reads one itself.

    class FixMatch(Task):
        def setup(self, runner):
            self.unlabelled = EndlessBatches(DataLoader(MyImages(), 64, shuffle=True))

        def train_step(self, model, batch):
            images = next(self.unlabelled)

An iterator does not say where it stands, and would begin anew after a resume. This one goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from hookexp import dist
from hookexp.data.stream import BatchStream

logger = logging.getLogger("hookexp")


class EndlessBatches:
    """Pass after pass over batches, one with each `next`; they stay on the device they come on.

    Kept in an attribute of a task or a model it is in checkpoints. How it gets back to its place is
    that of batches of one's own for training: by their `state_dict`, or by reading them again.

    Args:
        batches: a DataLoader, or another object that can be iterated again and again.

    Raises:
        TypeError: for what can be read only once.
    """

    is_held_by_its_owner = True

    def __init__(self, batches: Iterable[Any]) -> None:
        if isinstance(batches, Iterator):
            raise TypeError(
                f"EndlessBatches: {type(batches).__name__} can be read only once; give what iter() "
                "can begin again, such as the DataLoader itself"
            )
        self._stream = BatchStream(batches, endless=True)
        self._num_read = 0
        self._iterator: Iterator[Any] | None = None
        doubts = self._stream.doubts()
        if doubts and dist.rank() == 0:
            logger.warning("EndlessBatches: %s", doubts)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """The next batch.

        Raises:
            ValueError: if a whole pass gave none.
        """
        if self._iterator is None:
            self._iterator = self._stream.iterate(self._num_read)
        for batch in self._iterator:
            self._num_read += 1
            return batch
        raise ValueError(f"EndlessBatches: {type(self._stream.batches).__name__} gave no batch")

    def state_dict(self) -> dict[str, Any]:
        """How many were read, and where that was."""
        return {
            "num_read": self._num_read,
            "stream": self._stream.state_dict(self._num_read),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the state was asked for."""
        self._num_read = state["num_read"]
        self._stream.load_state_dict(state["stream"])
        self._iterator = None
