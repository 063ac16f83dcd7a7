"""Runs that are killed at chosen places and continued, against the same runs left alone.

    python tests/bench/exactness.py --rounds 3
    python tests/bench/exactness.py --rounds 1 --device cuda     # deterministic

Three kinds of runs (digits by epochs; characters by iterations; digits with random crops, dropout,
averaged weights, accumulation over 3, early stopping and a plateau schedule, with and without
workers) and three kinds of kills (at a random iteration, twice in one epoch, in a validation).
Compared by bytes: weights, optimizer, averages, generators, every hook's state, each line of
scalars.jsonl and each TensorBoard curve, clocks aside.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from killing import curves, differences, finish, kill_at, launch, start

COMMON = ["sinks=-console", "hooks.logger.interval=4", "resume=auto"]
DIGITS = ["model.width=4", "data.batch_size=16", "trainer.limit_val_batches=4"]
CROPS = [
    *DIGITS,
    "data.train._target_=killing.CroppedDigits",
    "hooks=+ema+early_stopping",
    "hooks/checkpoint=best",
    "hooks/optimizer=accumulate",
    "hooks.optimizer.cumulative_iters=3",
    "hooks.early_stopping.patience=20",
    "param_scheduler=plateau",
    "param_scheduler.plateau.patience=0",
    "model.dropout=0.3",
    "hooks.checkpoint.by_epoch=false",
    "hooks.checkpoint.interval=4",
    "trainer.max_epochs=3",
    "trainer.limit_train_batches=10",
]
CHARLM = [
    "experiment=charlm",
    "hooks=-text_samples",
    "data.train.max_chars=60000",
    "data.val.max_chars=60000",
    "data.test.max_chars=60000",
    "data.val.max_windows=32",
    "data.eval_batch_size=8",
    "data.batch_size=4",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.width=16",
    "model.dropout=0.1",
    "trainer.max_iters=30",
    "trainer.val_interval=10",
    "hooks.checkpoint.interval=4",
]


@dataclass(frozen=True)
class Kind:
    """A run, and how its lives before and after a kill differ."""

    name: str
    words: list[str]
    begins: tuple[str, ...] = ()
    goes_on: tuple[str, ...] = ()


KINDS = {
    "digits": [
        Kind("digits, by epochs", [*DIGITS, "trainer.max_epochs=3"]),
        Kind(
            "digits, saves between",
            [
                *DIGITS,
                "trainer.max_epochs=3",
                "trainer.limit_train_batches=10",
                "hooks.checkpoint.by_epoch=false",
                "hooks.checkpoint.interval=4",
            ],
        ),
    ],
    "charlm": [Kind("charlm, by iterations", CHARLM)],
    "crops": [
        Kind("crops, no workers", CROPS),
        Kind("crops, 2 workers", CROPS, ("data.num_workers=2",), ("data.num_workers=2",)),
        Kind("crops, 0 then 2 workers", CROPS, (), ("data.num_workers=2",)),
    ],
}


def kills_of(kind: Kind, how: str, rng: random.Random) -> list[list[str]]:
    """Where the lives of a run end, in words for the command line."""
    per_epoch, epochs = (79, 3) if kind.name == "digits, by epochs" else (10, 3)
    if how == "random iteration":
        return [kill_at(rng.randrange(1, per_epoch * epochs))]
    if how == "twice in an epoch":
        epoch = rng.randrange(epochs)
        places = sorted(rng.sample(range(1, per_epoch), 2))
        return [kill_at(epoch * per_epoch + place) for place in places]
    return [kill_at(per_epoch * rng.randrange(1, epochs + 1), val_batch=rng.randrange(3))]


def ended(device: str, *words: str) -> int:
    """Run a command line; what it ended with. A forked process could not use a GPU."""
    if device == "cpu":
        return finish(start(f"trainer.device={device}", *words))
    return finish(launch(f"trainer.device={device}", "trainer.deterministic=true", *words))


def is_same_run(
    kind: Kind, how: str, whole: Path, cut: Path, rng: random.Random, device: str
) -> list[str]:
    """Where a run that was killed differs from the one that was not; empty if nowhere."""
    common = [*COMMON, *kind.words, f"hydra.run.dir={cut}"]
    lives = kills_of(kind, how, rng)
    for number, kill in enumerate(lives):
        code = ended(device, *common, *kill, *(kind.goes_on if number else kind.begins))
        assert code == -signal.SIGKILL, (kind.name, how, kill, code)
    assert ended(device, *common, *kind.goes_on) == 0
    found = differences(whole, cut)
    return found if curves(whole) == curves(cut) else [*found, "TensorBoard"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of each kind of kill")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    folder, rng = Path(tempfile.mkdtemp()), random.Random(0)
    hows = ("random iteration", "twice in an epoch", "in a validation")
    print(f"{'equal runs':26}", *(f"{how:18}" for how in hows), flush=True)
    for group in arguments.only:
        whole = None
        for kind in KINDS[group]:
            if whole is None or group != "crops":
                # Runs with workers are compared with the one that has none.
                whole = folder / f"whole_{kind.name}".replace(" ", "-").replace(",", "")
                words = [*COMMON, *kind.words, f"hydra.run.dir={whole}"]
                assert ended(arguments.device, *words) == 0, kind.name
            cells = []
            for how in hows:
                equal = 0
                for number in range(arguments.rounds):
                    cut = folder / f"{kind.name}_{how}_{number}".replace(" ", "-").replace(",", "")
                    found = is_same_run(kind, how, whole, cut, rng, arguments.device)
                    equal += not found
                    if found:
                        print(f"{cut.name} differs: {', '.join(found[:5])}", file=sys.stderr)
                cells.append(f"{equal} of {arguments.rounds}")
            print(f"{kind.name:26}", *(f"{cell:18}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
