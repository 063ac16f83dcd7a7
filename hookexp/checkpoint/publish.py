"""Publishing a checkpoint: a small file to give away, named by its own checksum."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from hookexp.checkpoint.reading import load_checkpoint
from hookexp.checkpoint.store import CheckpointStore
from hookexp.checkpoint.whole_file import write_whole


def publish(path: Path, keys: Sequence[str]) -> Path:
    """Write `<stem>-<first 8 of sha256>.pth` beside `path`, with only these keys of it.

    Weights also go to a safetensors file of the same stem, for readers that are not torch.

    Returns:
        The path of the new checkpoint.

    Raises:
        ValueError: for keys the checkpoint does not have; it lists those there are.
    """
    checkpoint = load_checkpoint(path)
    missing = [key for key in keys if key not in checkpoint]
    if missing:
        raise ValueError(
            f"published_keys: {path.name} has no {', '.join(missing)}; "
            f"it has: {', '.join(checkpoint)}"
        )
    published = CheckpointStore(path.parent).save_by_checksum(
        {key: checkpoint[key] for key in keys}, path.stem
    )
    if "state_dict" in keys:
        weights = {name: t.contiguous().clone() for name, t in checkpoint["state_dict"].items()}
        content = save(weights)
        write_whole(published.with_suffix(".safetensors"), lambda file: file.write(content))
    return published
