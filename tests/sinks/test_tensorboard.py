from __future__ import annotations

import io
import math
import resource

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

from hookexp.sink import LogPoint
from hookexp.sinks.tensorboard import TensorboardSink, encode_png, frame_record

TRAIN = LogPoint("train", epoch=1, iter=10, batch=10, num_batches=57)
RESULT = LogPoint("val", epoch=1, iter=57, batch=5, num_batches=5, is_result=True)


@pytest.fixture
def sink(make_run):
    sink = TensorboardSink()
    sink.open(make_run())
    yield sink
    sink.close()


def read(folder):
    """What TensorBoard itself makes of a folder."""
    return EventAccumulator(str(folder)).Reload()


def test_scalars_are_read_back_without_a_close(sink, tmp_path):
    sink.log_scalars({"loss": 0.5, "lr": 0.25}, 10, TRAIN)
    sink.log_scalars({"loss": 0.125, "lr": 0.25}, 20, TRAIN)
    sink.log_scalars({"accuracy": 0.75}, 1, RESULT)

    events = read(tmp_path)
    assert sorted(events.Tags()["scalars"]) == ["train/loss", "train/lr", "val/accuracy"]
    losses = events.Scalars("train/loss")
    assert [(event.step, event.value) for event in losses] == [(10, 0.5), (20, 0.125)]
    (accuracy,) = events.Scalars("val/accuracy")
    assert (accuracy.step, accuracy.value) == (1, 0.75)


def test_a_row_is_one_event(sink, tmp_path):
    sink.log_scalars(dict.fromkeys("abcdef", 1.0), 10, TRAIN)

    (path,) = tmp_path.glob("*tfevents*")
    assert len(list(RawEventFileLoader(str(path)).Load())) == 2  # the version, and the row


def test_values_that_are_not_finite(sink, tmp_path):
    sink.log_scalars({"loss": math.nan, "grad_norm": math.inf}, 10, TRAIN)

    events = read(tmp_path)
    assert math.isnan(events.Scalars("train/loss")[0].value)
    assert events.Scalars("train/grad_norm")[0].value == math.inf


def test_an_event_that_does_not_fit_on_the_disk_spoils_no_later_one(sink, tmp_path):
    sink.log_scalars({"loss": 1.0}, 10, TRAIN)
    (path,) = tmp_path.glob("*tfevents*")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limit[1]))
    try:
        with pytest.raises(OSError, match="no room for a record"):
            sink.log_scalars({"loss": 2.0}, 20, TRAIN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    sink.log_scalars({"loss": 3.0}, 30, TRAIN)

    assert [event.step for event in read(tmp_path).Scalars("train/loss")] == [10, 30]


def test_progress_of_an_evaluation_is_not_kept(sink, tmp_path):
    sink.log_scalars({"time": 0.1}, 1, LogPoint("val", 1, 57, 2, 5))

    assert read(tmp_path).Tags()["scalars"] == []


def test_the_config_is_a_text(sink, tmp_path):
    sink.log_config({"optimizer": {"lr": 0.1}, "name": "digits"})

    (event,) = read(tmp_path).Tensors("config")
    assert event.tensor_proto.string_val[0].decode() == (
        "```yaml\noptimizer:\n  lr: 0.1\nname: digits\n```"
    )


def test_small_texts_are_shown_and_other_files_are_not(sink, tmp_path):
    (tmp_path / "sample.txt").write_text("import this")
    (tmp_path / "long.txt").write_text("x" * 100_000)
    (tmp_path / "weights.pth").write_bytes(b"\0")
    for name in ("sample.txt", "long.txt", "weights.pth"):
        sink.log_artifact(name, tmp_path / name, 20)

    events = read(tmp_path)
    assert events.Tags()["tensors"] == ["sample.txt"]
    (event,) = events.Tensors("sample.txt")
    assert event.step == 20
    assert b"import this" in event.tensor_proto.string_val[0]


def test_an_image_keeps_its_pixels(sink, tmp_path):
    image = torch.arange(3 * 4 * 5, dtype=torch.uint8).reshape(3, 4, 5)
    sink.log_image("grid", image, 3)

    (event,) = read(tmp_path).Images("grid")
    assert (event.step, event.width, event.height) == (3, 5, 4)
    decoded = Image.open(io.BytesIO(event.encoded_image_string))
    assert decoded.mode == "RGB"
    assert decoded.tobytes() == image.permute(1, 2, 0).contiguous().numpy().tobytes()


def test_an_image_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"uint8 \(3, height, width\), not \(1, 4, 4\)"):
        encode_png(torch.zeros(1, 4, 4, dtype=torch.uint8))


def test_a_resumed_run_goes_on_in_the_same_file_without_what_it_writes_again(make_run, tmp_path):
    sink = TensorboardSink()
    sink.open(make_run())
    sink.log_scalars({"loss": 10.0}, 10, TRAIN)
    state = sink.state_dict()
    sink.log_scalars({"loss": 20.0}, 20, TRAIN)
    sink.flush()
    sink.close()

    resumed = TensorboardSink()
    resumed.open(make_run())
    resumed.load_state_dict(state)
    for step in (20, 30):
        resumed.log_scalars({"loss": float(step + 1)}, step, TRAIN)
    resumed.close()

    assert len(list(tmp_path.glob("*tfevents*"))) == 1
    events = read(tmp_path).Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [(10, 10.0), (20, 21.0), (30, 31.0)]


def test_the_checksum_is_that_of_the_published_example():
    """CRC-32C of "123456789" is 0xE3069283; the mask is the one of TFRecord."""
    crc = 0xE3069283
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF

    assert frame_record(b"123456789")[-4:] == masked.to_bytes(4, "little")
