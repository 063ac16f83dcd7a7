"""Nothing in a checkpoint runs: wherever it hides, however it is loaded, whatever torch is told."""

from __future__ import annotations

import builtins
import functools
import os
import pickle
import subprocess

import pytest
import torch

from hookexp.checkpoint.reading import load_checkpoint
from hookexp.checkpoint.store import POINTER, CheckpointStore
from hookexp.errors import ConfigError
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.ema import EMAHook

SECTIONS = (
    "meta",
    "message_hub",
    "state_dict",
    "beside",
    "ema_state_dict",
    "optimizer",
    "param_schedulers",
    "loop",
    "sampler",
    "objective",
    "hooks",
    "rng",
    "a section of its own",
)


class Call:
    """Unpickled as the result of a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call

    def __call__(self):
        """Pickle wants what is called to look callable."""


def touch(trace):
    return f"open({str(trace)!r}, 'w').close()"


CORPUS = {
    "system": lambda trace: Call(os.system, f"touch {trace}"),
    "popen": lambda trace: Call(subprocess.Popen, ["touch", str(trace)]),
    "check_output": lambda trace: Call(subprocess.check_output, ["touch", str(trace)]),
    "eval": lambda trace: Call(builtins.eval, touch(trace)),
    "exec": lambda trace: Call(builtins.exec, touch(trace)),
    "open": lambda trace: Call(builtins.open, str(trace), "w"),
    "getattr": lambda trace: Call(
        Call(getattr, Call(__import__, "os"), "system"), f"touch {trace}"
    ),
    "partial": lambda trace: Call(functools.partial(os.system, f"touch {trace}")),
    "torch.load": lambda trace: Call(functools.partial(torch.load, weights_only=False), str(trace)),
    "nested": lambda trace: [({"a": (1, [Call(os.system, f"touch {trace}")])},)],
    "after good ones": lambda trace: [torch.zeros(3), Call(os.system, f"touch {trace}")],
    "a name alone": lambda trace: subprocess.Popen,
}


@pytest.fixture
def trace(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    return tmp_path / "it_ran"


@pytest.mark.parametrize("kind", CORPUS)
@pytest.mark.parametrize("as_torch_saves", [True, False])
def test_nothing_runs(tmp_path, trace, kind, as_torch_saves):
    path = tmp_path / "evil.pth"
    content = {"state_dict": {}, "meta": CORPUS[kind](trace)}
    if as_torch_saves:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ConfigError, match=r"is not loaded, since that could run code") as caught:
        load_checkpoint(path)
    assert len(str(caught.value).splitlines()) == 1
    assert not trace.exists()


def test_the_corpus_would_run(tmp_path, trace):
    """Torch's own default, turned over by the environment, falls for it."""
    torch.save(CORPUS["system"](trace), tmp_path / "evil.pth")
    with pytest.warns(UserWarning, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        torch.load(tmp_path / "evil.pth")
    assert trace.exists()


@pytest.mark.parametrize("way", ["resume", "load_from", "auto"])
@pytest.mark.parametrize("section", SECTIONS)
def test_in_every_section_by_every_way(make_runner, tmp_path, trace, section, way):
    hooks = {"checkpoint": CheckpointHook(), "ema": EMAHook()}
    folder = tmp_path / "run"
    make_runner(hooks, work_dir=folder, max_epochs=1).run("train")
    checkpoint = load_checkpoint(folder / "epoch_1.pth")
    good = checkpoint.get(section)
    evil = CORPUS["system"](trace)
    checkpoint[section] = {**good, "evil": evil} if isinstance(good, dict) else [good, evil]
    path = CheckpointStore(folder).save(checkpoint, "epoch_2.pth")
    given = {"auto": {"resume": "auto"}}.get(way, {way: str(path)})
    runner = make_runner(
        {"checkpoint": CheckpointHook(), "ema": EMAHook()}, work_dir=folder, max_epochs=3, **given
    )
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"epoch_2\.pth: holds more than .*\(posix\.system\)"):
        runner.run("train")
    assert not trace.exists()
    assert all(torch.equal(v, before[k]) for k, v in runner.model.state_dict().items())


@pytest.mark.parametrize("line", ["abc 5 ../../precious.pth", "abc 5 /etc/passwd", "x", "a b c d"])
def test_a_pointer_cannot_lead_outside_its_folder(tmp_path, line):
    folder = tmp_path / "a" / "b"
    precious = tmp_path / "precious.pth"
    precious.write_bytes(b"12345")
    CheckpointStore(folder).save({"a": 1}, "epoch_1.pth")
    with (folder / POINTER).open("a") as pointer:
        pointer.write(f"{line}\n")
    store = CheckpointStore(folder)
    with pytest.raises(ConfigError, match=r"last_checkpoint: .* is not 'sha256 size name'"):
        store.newest()
    with pytest.raises(ConfigError, match="last_checkpoint"):
        store.save({"a": 2}, "epoch_2.pth", obsolete=["../../precious.pth"])
    assert precious.exists()
