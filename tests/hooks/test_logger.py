"""What reaches the sinks, when, and at which step."""

from __future__ import annotations

import pytest
import torch
from fakes import TinyData, TinyTask

from hookexp.data.loader import MemoryLoader
from hookexp.data.sampler import BatchSampler
from hookexp.data.stream import BatchStream
from hookexp.hook import Hook, Priority
from hookexp.hooks.iter_timer import IterTimerHook
from hookexp.hooks.logger import LoggerHook
from hookexp.hooks.runtime_info import RuntimeInfoHook
from hookexp.sink import Sink


class Memory(Sink):
    def __init__(self):
        self.rows = []
        self.others = []

    def open(self, runner):
        self.others.append("open")

    def log_scalars(self, scalars, step, point):
        self.rows.append((point.mode, point.epoch, step, point.iter, dict(scalars)))

    def log_artifact(self, name, path, step):
        self.others.append((name, path.name, step))

    def log_image(self, name, image, step):
        self.others.append((name, tuple(image.shape), step))

    def close(self):
        self.others.append("close")


def logged(make_runner, *, logger=None, hooks=None, **settings):
    sink = Memory()
    runner = make_runner(
        {
            "runtime_info": RuntimeInfoHook(),
            "iter_timer": IterTimerHook(),
            "logger": logger or LoggerHook(interval=2),
            **(hooks or {}),
        },
        sinks={"memory": sink},
        **settings,
    )
    runner.run("train")
    return sink, runner


def steps(sink, mode):
    return [(epoch, step, it) for m, epoch, step, it, _ in sink.rows if m == mode]


def test_rows_by_epoch_carry_their_true_iteration(make_runner):
    sink, _ = logged(make_runner, train_size=40, max_epochs=2)
    assert steps(sink, "train") == [(1, 2, 2), (1, 4, 4), (2, 7, 7), (2, 9, 9)]
    assert steps(sink, "val") == [(1, 1, 5), (2, 2, 10)]
    by_iter, _ = logged(
        make_runner,
        logger=LoggerHook(interval=2, log_metric_by_epoch=False),
        train_size=40,
        max_epochs=2,
    )
    assert steps(by_iter, "val") == [(1, 5, 5), (2, 10, 10)]


@pytest.mark.parametrize(("factor", "told"), [(float("nan"), 1), (float("inf"), 1), (1.0, 0)])
def test_a_loss_that_is_not_finite_is_told_once(make_runner, caplog, factor, told):
    class Broken(TinyTask):
        def train_step(self, model, batch):
            return {"loss": super().train_step(model, batch)["loss"] * factor}

    logged(make_runner, task=Broken(), train_size=80, max_epochs=2)
    messages = [m for m in caplog.messages if "hooks=+check_invalid_loss" in m]
    assert len(messages) == told and all("iterations up to 2;" in m for m in messages)


def test_rows_of_a_run_by_iterations(make_runner):
    sink, _ = logged(make_runner, max_iters=6, val_interval=3)
    assert steps(sink, "train") == [(1, 2, 2), (1, 4, 4), (1, 6, 6)]
    assert steps(sink, "val") == [(1, 3, 3), (1, 6, 6)]


@pytest.mark.parametrize(("ignore_last", "expected"), [(True, [2, 4]), (False, [2, 4, 5])])
def test_the_shorter_end_of_an_epoch(make_runner, ignore_last, expected):
    logger = LoggerHook(interval=2, ignore_last=ignore_last)
    sink, _ = logged(make_runner, logger=logger, train_size=40, max_epochs=1)
    assert [it for _, _, it in steps(sink, "train")] == expected


class NoLength:
    def __iter__(self):
        return iter(list(MemoryLoader(TinyData(), BatchSampler(24, 8, seed=0, shuffle=False))))


@pytest.mark.parametrize(
    ("interval", "ignore_last", "expected"),
    [(2, True, [2, 5]), (2, False, [2, 3, 5, 6]), (3, False, [3, 6]), (10, True, [3, 6])],
)
def test_an_epoch_whose_length_is_not_known(make_runner, interval, ignore_last, expected):
    class Exchange(Hook):
        def before_run(self, runner):
            runner.train_loop.dataloader = BatchStream(NoLength())

    logger = LoggerHook(interval=interval, ignore_last=ignore_last)
    sink, runner = logged(
        make_runner, logger=logger, hooks={"exchange": Exchange()}, val_size=0, max_epochs=2
    )
    assert runner.max_iters is None
    rows = steps(sink, "train")
    assert [it for _, _, it in rows] == expected
    assert [epoch for epoch, _, _ in rows] == [1 + (it > 3) for it in expected]


def test_an_evaluation_of_data_without_a_length_counts_its_batches(make_runner):
    points = []

    class Points(Sink):
        def log_scalars(self, scalars, step, point):
            points.append((point.mode, point.batch, point.num_batches, point.is_result))

    hooks, sinks = {"logger": LoggerHook(interval=2)}, {"points": Points()}
    runner = make_runner(hooks, sinks=sinks, max_epochs=2)
    runner.val_loop.dataloader = BatchStream(NoLength())
    runner.run("train")
    of_a_validation = [("val", 2, None, False), ("val", 3, 3, True)]
    assert [point for point in points if point[0] == "val"] == of_a_validation * 2


def test_an_interval_may_change_while_a_run_goes_on(make_runner):
    class Closer(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 5:
                runner.hooks["logger"].interval = 2

    logger = LoggerHook(interval=100)
    sink, _ = logged(make_runner, logger=logger, hooks={"closer": Closer()}, max_iters=10)
    assert [it for _, _, it in steps(sink, "train")] == [6, 8, 10]


@pytest.mark.parametrize(("interval", "expected"), [(3, [3, 6, 9]), (-1, []), (0, [])])
def test_the_name_of_the_experiment_has_an_interval_of_its_own(
    make_runner, monkeypatch, interval, expected
):
    said = []

    class Listen(Hook):
        priority = Priority.LOWEST

        def before_train(self, runner):
            def info(message, *arguments):
                if message.startswith("Exp name"):
                    said.append((runner.iter + 1, arguments[0]))

            monkeypatch.setattr(runner.logger, "info", info)

        def after_train(self, runner):
            monkeypatch.undo()

    logger = LoggerHook(interval=4, interval_exp_name=interval)
    _, runner = logged(
        make_runner, logger=logger, hooks={"listen": Listen()}, train_size=40, max_epochs=2
    )
    assert said == [(n, runner.experiment_name) for n in expected]


def test_values_are_means_over_the_interval_and_the_lr_is_that_of_the_iteration(make_runner):
    losses = []

    class Watch(Hook):
        priority = Priority.VERY_HIGH

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            losses.append(outputs["loss"].item())

    sink, _ = logged(make_runner, hooks={"watch": Watch()}, train_size=32, max_epochs=1)
    rows = [row for mode, *_, row in sink.rows if mode == "train"]
    assert rows[1]["loss"] == pytest.approx((losses[2] + losses[3]) / 2)
    assert rows[1]["lr"] == pytest.approx(0.1)
    assert rows[1]["time"] >= rows[1]["data_time"] > 0
    assert rows[1]["eta"] == 0.0 < rows[0]["eta"]


def test_the_lr_of_every_group_is_that_of_the_iteration(make_runner):
    class TwoGroups(Hook):
        priority = Priority.HIGHEST

        def before_run(self, runner):
            params = runner.optimizer.param_groups[0]["params"]
            runner.optimizer.add_param_group({"params": [params.pop()]})

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            for index, group in enumerate(runner.optimizer.param_groups):
                group["lr"] = 0.01 * (runner.iter + 1) / (index + 1)

    sink, _ = logged(make_runner, hooks={"groups": TwoGroups()}, max_iters=4)
    rows = [row for mode, *_, row in sink.rows if mode == "train"]
    assert [(row["lr"], row["lr/1"]) for row in rows] == [(0.02, 0.01), (0.04, 0.02)]


def test_the_window_is_as_long_as_the_interval(make_runner):
    losses = []

    class Watch(Hook):
        priority = Priority.VERY_HIGH

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            losses.append(outputs["loss"].item())

    logger = LoggerHook(interval=150)
    sink, _ = logged(make_runner, logger=logger, hooks={"watch": Watch()}, max_iters=150)
    rows = [row for mode, *_, row in sink.rows if mode == "train"]
    assert rows[0]["loss"] == pytest.approx(sum(losses) / 150)


def test_test_metrics_reach_the_sinks_and_train_then_test_logs_both(make_runner):
    sink, runner = logged(make_runner, max_epochs=1)
    runner.run("test")
    assert [mode for mode, *_ in sink.rows] == ["train", "val", "test"]
    assert sink.rows[-1][-1]["loss"] > 0
    assert sink.others == ["open", "close", "open", "close"]


def test_posts_of_other_hooks_are_forwarded(make_runner):
    class Poster(Hook):
        priority = Priority.LOWEST

        def after_val_epoch(self, runner, metrics=None):
            path = runner.work_dir / "note.txt"
            path.write_text("hello")
            runner.message_hub.post_artifact("note", path)
            runner.message_hub.post_image("grid", torch.zeros(3, 4, 5, dtype=torch.uint8))

    sink, _ = logged(make_runner, hooks={"poster": Poster()}, max_epochs=1)
    assert sink.others == ["open", ("note", "note.txt", 3), ("grid", (3, 4, 5), 3), "close"]


def test_a_value_that_is_no_scalar_is_named(make_runner):
    class Chatty(TinyTask):
        def train_step(self, model, batch):
            return {**super().train_step(model, batch), "features": torch.zeros(3)}

    with pytest.raises(ValueError, match=r"'features' of shape \(3,\)"):
        logged(make_runner, task=Chatty(), max_epochs=1)


def test_logs_are_copied_to_out_dir(make_runner, tmp_path):
    class Writer(Hook):
        def before_train(self, runner):
            (runner.work_dir / "scalars.jsonl").write_text("{}\n")
            (runner.work_dir / "weights.pth").write_text("x")

    logger = LoggerHook(out_dir=str(tmp_path / "logs"), keep_local=False)
    _, runner = logged(make_runner, logger=logger, hooks={"writer": Writer()}, max_epochs=1)
    assert [p.name for p in (tmp_path / "logs" / "run").iterdir()][:2]
    assert (tmp_path / "logs" / "run" / "scalars.jsonl").exists()
    assert not (tmp_path / "logs" / "run" / "weights.pth").exists()
    assert not (runner.work_dir / "scalars.jsonl").exists()


def test_a_bad_interval():
    with pytest.raises(ValueError, match="interval=0"):
        LoggerHook(interval=0)


def test_a_metric_that_is_called_like_a_timing_is_the_one_that_is_logged(make_runner):
    class Timed(TinyTask):
        def compute_metrics(self):
            return {**super().compute_metrics(), "time": torch.tensor(5.0)}

    sink, _ = logged(make_runner, task=Timed(), max_epochs=1)
    (row,) = [row for mode, *_, row in sink.rows if mode == "val"]
    assert row["time"] == 5.0
    assert list(row) == ["accuracy", "loss", "time", "data_time"]
