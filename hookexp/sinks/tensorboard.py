"""`TensorboardSink`: the numbers, images and texts of a run as a TensorBoard event file."""

from __future__ import annotations

import os
import socket
import struct
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import google_crc32c

from hookexp.append_file import AppendFile
from hookexp.sink import LogPoint, Sink

if TYPE_CHECKING:
    from torch import Tensor

    from hookexp.runner import Runner

TEXT_SUFFIXES = (".txt", ".md", ".json", ".yaml", ".csv", ".log")
MAX_TEXT_BYTES = 64 * 1024

_ENDING = ".hookexp"
"""Of our event files: another writer's files in the folder are left alone."""


class TensorboardSink(Sink):
    """Writes `events.out.tfevents.*` into the run's folder; look with `tensorboard --logdir`.

    A row of numbers is one event, and an event is one unbuffered write: a killed run loses none.
    Only TensorBoard's message types are used. Its own writer, and torch's on top of it, import
    TensorFlow where that is installed, make an event of each number and hold events back in a
    thread. Text files up to 64 KiB are shown as text; other files are left where they are.

    `sinks=+tensorboard`
    """

    def __init__(self) -> None:
        self._file: AppendFile | None = None

    def open(self, runner: Runner) -> None:
        # Not `tensorboard.summary`: it takes 150 ms to import, these 25.
        from tensorboard.compat.proto import event_pb2, summary_pb2

        self._event_pb2 = event_pb2
        self._summary_pb2 = summary_pb2
        # A resumed run goes on in the file it had, so that its curves have no seam.
        earlier = sorted(runner.work_dir.glob(f"events.out.tfevents.*{_ENDING}"))
        if earlier:
            self._file = AppendFile(earlier[-1])
            return
        origin = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}{_ENDING}"
        self._file = AppendFile(runner.work_dir / f"events.out.tfevents.{origin}")
        self._write(file_version="brain.Event:2")

    def log_config(self, config: Mapping[str, Any]) -> None:
        import yaml

        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        self._write_text("config", f"```yaml\n{text}```", step=0)

    def log_scalars(self, scalars: Mapping[str, float], step: int, point: LogPoint) -> None:
        if point.is_progress:
            return
        event = self._event_pb2.Event(wall_time=time.time(), step=step)
        add, prefix = event.summary.value.add, f"{point.mode}/"
        for name, value in scalars.items():
            add(tag=prefix + name, simple_value=value)
        self._append(event)

    def log_image(self, name: str, image: Tensor, step: int) -> None:
        summary = self._summary_pb2.Summary
        _, height, width = image.shape
        picture = summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=encode_png(image)
        )
        self._write(step=step, summary=summary(value=[summary.Value(tag=name, image=picture)]))

    def log_artifact(self, name: str, path: Path, step: int) -> None:
        if path.suffix in TEXT_SUFFIXES and path.stat().st_size <= MAX_TEXT_BYTES:
            text = path.read_text(encoding="utf-8", errors="replace")
            self._write_text(name, f"```\n{text}\n```", step)

    def flush(self) -> None:
        self._opened().flush()

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._opened().position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._opened().cut(state["position"])

    def start_over(self) -> None:
        self._opened().cut(0)
        self._write(file_version="brain.Event:2")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write_text(self, name: str, markdown: str, step: int) -> None:
        from tensorboard.compat.proto import tensor_pb2, tensor_shape_pb2, types_pb2

        summary = self._summary_pb2.Summary
        metadata = self._summary_pb2.SummaryMetadata(
            plugin_data=self._summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        )
        shape = tensor_shape_pb2.TensorShapeProto(
            dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)]
        )
        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING, string_val=[markdown.encode()], tensor_shape=shape
        )
        value = summary.Value(tag=name, metadata=metadata, tensor=tensor)
        self._write(step=step, summary=summary(value=[value]))

    def _write(self, **event: Any) -> None:
        self._append(self._event_pb2.Event(wall_time=time.time(), **event))

    def _append(self, event: Any) -> None:
        """One event as one record in one write, or none of it."""
        self._opened().append(frame_record(event.SerializeToString()))

    def _opened(self) -> AppendFile:
        assert self._file is not None, "the sink is not open"
        return self._file


def frame_record(data: bytes) -> bytes:
    """A TFRecord: length, its checksum, the data, its checksum.

    Source: https://www.tensorflow.org/tutorials/load_data/tfrecord, "TFRecords format details".
    """
    length = struct.pack("<Q", len(data))
    checksums = (struct.pack("<I", _masked_crc32c(part)) for part in (length, data))
    return b"".join([length, next(checksums), data, next(checksums)])


def _masked_crc32c(data: bytes) -> int:
    crc: int = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def encode_png(image: Tensor) -> bytes:
    """PNG file content of an image, uint8 of shape (3, height, width).

    Source: the PNG specification, https://www.w3.org/TR/png-3/: 8 bits per sample, colour type 2
    (RGB), every scanline with filter type 0.
    """
    channels, height, width = image.shape
    if channels != 3 or image.element_size() != 1:
        raise ValueError(f"an image is uint8 (3, height, width), not {tuple(image.shape)}")
    pixels = image.detach().cpu().permute(1, 2, 0).contiguous().numpy().tobytes()
    stride = 3 * width
    scanlines = b"".join(b"\0" + pixels[i * stride : (i + 1) * stride] for i in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(scanlines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
