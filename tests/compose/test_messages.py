"""Mistakes of a newcomer: each gets one line that says what to write instead."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hookexp.compose.conf_dir import conf_dir

NUM_HOOKS = len([p for p in (conf_dir() / "hooks").iterdir() if p.is_dir()])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # names of hooks
        ("+hook.spike._target_=a.B", "hook: nobody reads this key of the config; did you mean"),
        ("hooks=+early-stopping", "hooks=+early: there is no hook 'early'; did you mean "
                                  "early_stopping? --help lists"),
        ("hooks=+tta", "hooks=+tta: there is no hook 'tta'; did you mean prepare_tta?"),
        ("hooks=+mine.Hook", f"hooks=+mine.Hook: there is no hook 'mine.Hook'; --help lists all "
                             f"{NUM_HOOKS}; a class of your own: +hooks.NAME._target_=mine.Hook"),
        ("hooks+=ema", "hooks+=ema: there is no +=; write hooks=+ema"),
        ("trainer.max_epochs+=1", "trainer.max_epochs+=1: there is no +=; write "
                                  "trainer.max_epochs=VALUE"),
        ("model=gan.Gan", "model=gan.Gan: there is no such option; model has: convnet, gpt; a "
                          "class of your own: model._target_=gan.Gan"),
        ("data=mine.Data", "data=mine.Data: there is no such option; data has: digits, "
                           "stdlib_text; a class of your own: data.train._target_=mine.Data"),
        ("hooks=+emma", "hooks=+emma: there is no hook 'emma'; did you mean ema? --help lists "
                        f"all {NUM_HOOKS}"),
        ("hooks=+wandb", "hooks=+wandb: wandb is one of the sinks; write sinks=+wandb"),
        ("sinks=-jsonl+ema", "sinks=+ema: ema is one of the hooks; write hooks=+ema"),
        ("hooks=+zzz", f"hooks=+zzz: there is no hook 'zzz'; --help lists all {NUM_HOOKS}"),
        ("hooks=emma", "hooks=emma: there is no such set; sets are: default, none; to add one of "
                       "the hooks write hooks=+NAME; did you mean ema? --help lists all"),
        ("hooks=+ema hooks=-logger", "hooks=+ema hooks=-logger: give hooks= once: "
                                     "hooks=+ema-logger"),
        ("hooks=+ema hooks=none", "hooks=+ema hooks=none: give hooks= once"),
        ("hooks=-ema", "hooks=-ema: ema is not on, so it cannot be taken away; on are: "
                       "checkpoint, iter_timer, logger, optimizer, param_scheduler, "
                       "runtime_info, sampler_seed"),
        ("hooks=ema", "hooks=ema: to add ema to the default hooks write hooks=+ema"),
        ("hooks=+ema/sw", "hooks/ema=sw: there is no such option; hooks/ema has: annealing, "
                          "default, swa; did you mean swa?"),
        ("hooks=+logger", "hooks=+logger: logger is on already (hooks=default); to choose its "
                          "option write hooks/logger=OPTION (default)"),
        ("hooks=+ema +hooks/ema=swa", "hooks=+ema: ema is on already (+hooks/ema=swa); "),
        ("hooks=+ema+ema", "hooks=+ema+ema: ema comes twice; "),
        ("hooks=+", "hooks=+: + is not a name; write hooks=+NAME"),
        ("hooks=[+ema,-logger]", "hooks=[+ema,-logger]: all edits of a set are one word: "
                                 "hooks=+ema-logger"),
        ("hooks=[-logger]", "hooks=[-logger]: all edits of a set are one word: hooks=-logger"),
        ("hooks/ema=swa", "hooks/ema=swa: ema is not on; to add it write hooks=+ema/swa"),
        ("hooks/emma=swa", "hooks=+emma: there is no hook 'emma'"),
        ("hooks/ema=null", "hooks/ema=null: to take ema away write hooks=-ema"),
        ("hooks/nosuch=null", "hooks=+nosuch: there is no hook 'nosuch'"),
        ("~hooks/ema", "~hooks/ema: ema is not on, so it cannot be taken away"),
        ("hooks=ema,early_stopping", "hooks=ema,early_stopping: for both at once write "
         "hooks=+ema+early_stopping; for a run with each: -m hooks=+ema,+early_stopping"),
        ("sinks=+wandbb", "sinks=+wandbb: there is no sink 'wandbb'; there are: console, jsonl, "
                          "tensorboard, wandb; did you mean wandb?"),
        # options of other groups
        ("optimizer=sdg", "optimizer=sdg: there is no such option; optimizer has: adam, adamw, "
                          "sgd; did you mean sgd?"),
        ("optimizer=null", "optimizer=null: optimizer needs the name of an option; write one of: "
                           "adam, adamw, sgd"),
        ("experiment=nosuch", "experiment=nosuch: there is no such option; experiment has: charlm"),
        ("optimizer=", "optimizer=: optimizer needs the name of an option; write one of: adam, "),
        ("hooks=", "hooks=: hooks needs the name of an option; write hooks=none"),
        ("hooks/checkpoint=", "hooks/checkpoint=: hooks/checkpoint needs the name of an option; "
                              "write one of: best, default"),
        ("+optimizer=adam", "+optimizer: the group has an option already; write optimizer=OPTION"),
        # keys and values
        ("trainer.max_epoch=3", "trainer.max_epoch: trainer has no 'max_epoch'; it has: "
                                "max_epochs, max_iters, "),
        ("lr=0.1", "lr: the config has no 'lr'; it has: data, model, task, optimizer, "
         "param_scheduler, trainer, hooks, sinks, name, mode, seed, resume, load_from, "
         "load_from_trusted, resume_ignore; did you mean optimizer.lr?"),
        ("trainer.iters=3", "trainer.iters: trainer has no 'iters'; it has: max_epochs, "),
        ("help", "help: write --help"),
        ("optimzer=sgd", "optimzer: the config has no 'optimzer'; it has: data, model, "),
        ("hooks.ema.momentum=1", "hooks.ema.momentum: ema is not on; to add it write hooks=+ema"),
        ("hooks.emma.momentum=1", "hooks.emma.momentum: there is no hook 'emma'; did you mean "),
        ("~optimizer", "~optimizer: no run goes without this key of the config; use "
                       "optimizer=OPTION: adam, adamw, sgd"),
        ("~hooks", "~hooks: no run goes without this key of the config; use hooks=none"),
        ("~seed", "~seed: no run goes without this key of the config; use seed=VALUE"),
        ("name=", "name=: has to name a folder in outputs/, such as name=my_run or "),
        ("name=null", "name=null: has to name a folder in outputs/"),
        ("name=a/../../x", "name=a/../../x: has to name a folder in outputs/"),
        ("name=/etc/x", "name=/etc/x: has to name a folder in outputs/"),
        ("-m name=../x optimizer.lr=1,2", "name=../x: has to name a folder in outputs/"),
        ("model.width=abc", "model.width=abc: use a number, such as 32 (channels after the first"),
        ("--config-name=foo", "--config-name foo: there is no foo.yaml beside config.yaml or in "),
        ("--config-path=foo", "--config-path foo: would take the place of all configs of this "
         "project; configs of your own go beside them: --config-dir foo"),
        ("-cp .", "-cp .: would take the place of all configs of this project; "),
        ("-cp pkg://nosuch", "--config-path: there is no such package; configs of your own go "),
        ("hooks=+ema hooks.ema.momentumm=1", "hooks.ema.momentumm: hooks.ema has no 'momentumm'; "
         "it has: priority, ema_type, momentum, "),
        ("task.metrics.f1._target_=a.F1", "task.metrics.f1: task.metrics has no 'f1'; it has: "
         "accuracy; to add it write +task.metrics.f1._target_="),
        ("+trainer.device=cpu", "+trainer.device: the config has this key already; write "
                                "trainer.device=cpu without +"),
        ("~hooks.nosuch", "~hooks.nosuch: there is nothing of this name to take away"),
        ("optimizer=adam,sgd", "optimizer=adam,sgd: for a run with each value add -m"),
        ("optimizer.lr=0.1,0.2", "optimizer.lr=0.1,0.2: for a run with each value add -m"),
        ("mode=trian", "mode=trian: there is no such mode; modes are: train, val, test, explain, "
                       "verify_resume, lr_find; did you mean train?"),
        # values, told before torch is imported
        ("optimizer.lr=high", "optimizer.lr=high: use a number, such as 0.03"),
        ("optimizer.lr=[0.1,0.01]", "optimizer.lr=[0.1,0.01]: use a number, such as 0.03"),
        ("optimizer.param_groups.rules={params:x}", "optimizer.param_groups.rules={params:x}: "
         "a list belongs here; write 'optimizer.param_groups.rules=[{params:x}]'"),
        ("model.dropout={a:1}", "model.dropout={a:1}: use a number, such as 0.2"),
        ("hooks.checkpoint.interval=abc", "hooks.checkpoint.interval=abc: use a number, such as 1 "
         "(epochs (iterations, with by_epoch=false) between two; -1: never)"),
        ("trainer.max_epochs=2.5", "trainer.max_epochs=2.5: use a whole number, 1 or more"),
        ("trainer.precision=fp8", "trainer.precision=fp8: use one of fp32, bf16, fp16"),
        ("data.batch_size=0", "data.batch_size=0: use a whole number, 1 or more"),
        ("seed=abc", "seed=abc: use a whole number, 0 or more"),
        ("resume=nosuch.pth", "resume=nosuch.pth: there is no such file or folder"),
        ("resume=atuo", "resume=atuo: there is no such file or folder; did you mean auto?"),
        ("resume=", "resume=: is empty; give a file or a folder, or leave it out"),
        ("load_from=", "load_from=: is empty; give a file or a folder, or leave it out"),
        ("resume=true", "resume=True: use the path of a file or a folder"),
        ("hooks=+closure", "hooks.closure.fn_name: needs a value: hooks.closure.fn_name=VALUE"),
        ("data.train=abc", "data.train: has no _target_, so nothing can be made of it"),
        ("data.train=mine.Data", "data.train=mine.Data: names a class, which is written "
                                 "data.train._target_=mine.Data"),
        ("+hooks.x=mine.Hook", "hooks.x=mine.Hook: names a class, which is written "
                               "hooks.x._target_=mine.Hook"),
        ("model._target_=null", "model._target_=null: has to name a class or a function, such as"),
        ("task._target_=3", "task._target_=3: has to name a class or a function, such as"),
        ("data.drop_lst=true", "data.drop_lst: data has no 'drop_lst'; "),
        # how it is written
        ("+hooks=+ema", "+hooks: the sign stands after the equals sign: hooks=+NAME, hooks=-NAME"),
        ("hooks=+ema,", "hooks=+ema,: all edits of a set are one word: hooks=+ema"),
        ("hooks=+ema seed=1 +grad_norm", "+grad_norm: what is added or taken away is one word"),
        ("hooks=+ema seed=1 -logger", "-logger: there is no such flag; what is taken away stands "
         "in the same word as what is added: hooks=+NAME-logger"),
        ("hydra.run.dir=", "hydra.run.dir=: is empty; give a folder, or hydra.run.dir=. for the "),
        ("-m hydra.sweep.dir= seed=1,2", "hydra.sweep.dir=: is empty; give a folder, or hydra.sw"),
        ("--cfg=jobs", "--cfg jobs: use one of job, hydra, all"),
        ("trainer.max_epochs = 20", "'trainer.max_epochs': not of the form KEY=VALUE; write it as "
                                    "one word, without spaces: trainer.max_epochs=20"),
        ("trainer.max_epochs= 20", "'20': not of the form KEY=VALUE; write it as one word, without "
                                   "spaces: trainer.max_epochs=20"),
        ("load_from=a=b", "'load_from=a=b': the value cannot be read; put quotes inside quotes"),
        ("--hooks=+ema", "--hooks: there is no such flag; what belongs to the config is written "
                         "without dashes: hooks=+ema"),
        ("--multirum", "--multirum: there is no such flag; did you mean --multirun?"),
        ("-hooks=+ema", "-hooks: there is no such flag"),
        ("-cd", "-cd: needs a value after it"),
        (
            "trainer.compile.backend=eager",
            "trainer.compile.backend: trainer.compile is empty; to add to it write "
            "+trainer.compile.backend=eager",
        ),
        ("--config-dir nosuch", "--config-dir nosuch: there is no such folder"),
        # hooks that cannot be made, told without building anything else
        ("mode=explain hooks=+ema hooks.ema.momentum=3", "hooks.ema.momentum=3: use a number"),
        ("mode=explain hooks=+ema hooks.ema.priority=HIHG", "hooks.ema: priority 'HIHG': use"),
        ("mode=explain +hooks.mine._target_=no_such.Hook", "hooks.mine._target_=no_such.Hook: "
                                                           "cannot be imported"),
        ("mode=explain +hooks.mine._target_=./mine.py", "hooks.mine._target_=./mine.py: is a file; "
         "name what is in it as Python does: mine.NAME"),
        ("mode=explain +hooks.mine._target_=a/mine.py:Mine", "hooks.mine._target_=a/mine.py:Mine: "
         "is a file; name what is in it as Python does: a.mine.Mine"),
        ("mode=explain +hooks.mine.a=1", "hooks.mine: has no _target_"),
        ("-m mode=explain name=a,b", "mode=explain explains one run; leave -m out"),
    ],
)  # fmt: skip
def test_mistake(cli: Callable[..., Any], words: str, message: str) -> None:
    answer = cli(*words.split(" "))
    assert answer.code == 1
    assert answer.message.startswith(f"hookexp: {message}")
    assert not (answer.folder / "outputs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("optimizer.param_groups=3", "optimizer.param_groups=3: use null, or a mapping of"),
        ("optimizer.param_groups.rules=[{params:classifier,lr_mult:abc}]",
         "optimizer.param_groups.rules[0].lr_mult=abc: use a number, such as 0.1"),
        ("task.loss=mse", "task.loss=mse: has to be a function of (outputs, targets), such as"),
        ("task.loss._target_=torch.nn.functional.mse_loss",
         "task.loss: mse_loss needs input, target; give task.loss.input=VALUE (with + before it if "
         "the config has no such key); to have it called with them later: _partial_: true (+task."),
        ("task.metrics=null", "task.metrics=None: has to be a mapping of names to metrics, or {}"),
        ("hooks.optimizer.grad_clip=1", "hooks.optimizer.grad_clip=1: has to be a mapping, such"),
        ("hooks.optimizer.grad_clip.max_norm=abc",
         "hooks.optimizer.grad_clip.max_norm=abc: use a number above 0"),
        ("resume_ignore=hooks.ema",
         "resume_ignore=hooks.ema: use a list, 'resume_ignore=[hooks.ema]'"),
        ("+data.drop_lst=true",
         "data.drop_lst: no such setting of a loader; did you mean drop_last?; there are: batch"),
        ("+data.sampler=x", "data.sampler: no such setting of a loader; "),
        ("+sinks.mine._target_=fractions.Fraction",
         "sinks.mine: Fraction is no sink; derive it from hookexp.Sink"),
        ("+hooks.mine._target_=fractions.Fraction",
         "hooks.mine: Fraction has no method that is called like a mount point, so it is no hook"),
    ],
)  # fmt: skip
def test_mistake_that_shows_when_a_run_is_built(
    cli: Callable[..., Any], words: str, message: str
) -> None:
    answer = cli("trainer.device=cpu", "trainer.max_iters=1", words)
    assert answer.code == 1
    assert answer.message.startswith(f"hookexp: {message}")


@pytest.mark.parametrize(
    "words",
    [
        "hooks.optimizer.cumulative_iters=[[0,2],[10,4]]",
        "hooks/optimizer=accumulate hooks.optimizer.cumulative_iters=[[0,2],[10,4]]",
        "data.drop_last=true",
        "+data.timeout=10",
        "+data.folder=x name=${data.folder}",
        "+data.stats.width=16 model.width=${data.stats.width}",
        "+data.sizes=[8,16] model.width=${data.sizes[1]}",
        "+data.size=8 model.width=${oc.select:data.size,28}",
        "hooks.optimizer.grad_clip.max_norm=1 hooks.optimizer.grad_clip.norm_type=inf",
    ],
)
def test_what_is_no_mistake(cli: Callable[..., Any], words: str) -> None:
    assert cli("trainer.device=cpu", "trainer.max_iters=1", *words.split(" ")).code == 0


@pytest.mark.parametrize(
    ("word", "ending"),
    [
        ("epochs=3", "; did you mean trainer.max_epochs?"),
        ("batch_size=3", "; did you mean data.batch_size?"),
        ("trainer.epochs=3", "; did you mean max_epochs?"),
        ("model=convnet,gpt", ": for a run with each value add -m"),
    ],
)
def test_the_end_of_a_message(cli: Callable[..., Any], word: str, ending: str) -> None:
    assert cli(word).message.endswith(ending)


@pytest.mark.parametrize(
    "word", ["hooks=+ema -logger", "hooks=+ema\t-logger", "hooks='+ema -logger'"]
)
def test_a_space_inside_of_a_word(cli: Callable[..., Any], word: str) -> None:
    answer = cli(word)
    assert answer.code == 1
    assert answer.message.endswith(": all edits of a set are one word: hooks=+ema-logger")


@pytest.mark.parametrize(
    ("words", "together"),
    [
        ("hooks=+ema -logger", "hooks=+ema-logger"),
        ("hooks=+ema, -logger", "hooks=+ema-logger"),
        ("hooks=+ema , -logger", "hooks=+ema-logger"),
        ("hooks=+ema ,-logger", "hooks=+ema-logger"),
        ("hooks=+ema, early_stopping -logger", "hooks=+ema+early_stopping-logger"),
        ("hooks=+ema/swa + grad_norm", "hooks=+ema/swa+grad_norm"),
        ("hooks= +ema", "hooks=+ema"),
        ("sinks=-jsonl +wandb", "sinks=-jsonl+wandb"),
    ],
)
def test_edits_of_a_set_in_several_words(
    cli: Callable[..., Any], words: str, together: str
) -> None:
    message = f"hookexp: {words}: all edits of a set are one word: {together}"
    assert cli("seed=1", *words.split(" "), "trainer.device=cpu").message == message
    if "," in words:
        apart = re.sub(r"(\w)([+-])", r"\1,\2", together)
        message += f"; for a run with each: -m {apart}"
        assert cli("-m", *words.split(" ")).message == message


def test_a_flag_after_a_set_is_a_flag(cli: Callable[..., Any]) -> None:
    answer = cli("hooks=+ema", "-c", "job")
    assert (answer.code, "EMAHook" in answer.out) == (0, True)


@pytest.fixture
def my_conf(tmp_path: Path) -> Path:
    folder = tmp_path / "my_conf"
    files = {
        "experiment/mine.yaml": "# @package _global_\ndefaults:\n  - /hooks/ema: swa\n"
        "  - override /hooks/checkpoint: best\n",
        "experiment/option.yaml": "# @package _global_\ndefaults:\n"
        "  - override /hooks/checkpoint: bst\n",
        "experiment/nested.yaml": "trainer:\n  max_epochs: 5\n",
        "experiment/nested_defaults.yaml": "defaults:\n  - override /hooks/checkpoint: best\n",
        "experiment/no_slash.yaml": "# @package _global_\ndefaults:\n  - optimizer: adamw\n",
        "experiment/twice.yaml": "# @package _global_\ndefaults:\n  - /model: gpt\n",
        "experiment/hook_twice.yaml": "# @package _global_\ndefaults:\n"
        "  - /hooks/checkpoint: best\n",
        "experiment/key.yaml": "# @package _global_\ntrainer: {max_epoch: 5}\n",
        "experiment/top.yaml": "# @package _global_\noptimzer: {lr: 1}\n",
        "experiment/hook.yaml": "# @package _global_\nhooks:\n  chekpoint:\n    interval: 3\n",
        "model/target.yaml": "target: torch.nn.Linear\n",
        "model/empty.yaml": "",
        "experiment/wrong.yaml": "# @package _global_\ndefaults:\n  - override /hooks/ema: swa\n",
        "model/broken.yaml": "width: [1\nheight: 2\n",
        "hooks/spike.yaml": "_target_: a.Spike\n",
        "hooks/step/default.yaml": "_target_: a.Step\n",
        "experiment/no_name.yaml": "# @package _global_\ndefaults:\n  - /hooks/spike\n",
        "experiment/items.yaml": "- a\n- b\n",
        "experiment/bom.yaml": "\ufeff# @package _global_\nname: bom\n",
        "hooks/text.yaml": "only text\n",
        "model/variable.yaml": "_target_: a.B\nroot: ${oc.env:NO_SUCH_VARIABLE}\n",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("experiment=mine hooks=+ema", "hooks=+ema: ema is on already (experiment=mine); "),
        ("experiment=wrong", "in experiment/wrong.yaml: hooks/ema=OPTION: ema is not on; "),
        (
            "experiment=option",
            "{conf}/experiment/option.yaml, line 3: hooks/checkpoint=bst: there "
            "is no such option; hooks/checkpoint has: best, default; did you mean best?",
        ),
        (
            "experiment=nested",
            "{conf}/experiment/nested.yaml, line 1: experiment: its values stand",
        ),
        ("experiment=nested_defaults", "in experiment/nested_defaults.yaml: its values would"),
        (
            "experiment=no_slash",
            "in experiment/no_slash.yaml: optimizer: in an experiment a group "
            "begins with a slash; write `- override /optimizer: adamw`",
        ),
        (
            "experiment=twice",
            "{conf}/experiment/twice.yaml, line 3: model has an option already; write "
            "`override /model: gpt`",
        ),
        (
            "experiment=hook_twice",
            "{conf}/experiment/hook_twice.yaml, line 3: hooks/checkpoint has an option already; "
            "write `override /hooks/checkpoint: best`",
        ),
        (
            "experiment=key",
            "{conf}/experiment/key.yaml, line 2: trainer.max_epoch: no such "
            "setting; did you mean max_epochs?",
        ),
        (
            "experiment=top",
            "{conf}/experiment/top.yaml, line 2: optimzer: nobody reads this key "
            "of the config; did you mean optimizer?",
        ),
        (
            "experiment=hook",
            "{conf}/experiment/hook.yaml, line 3: hooks.chekpoint: has no "
            "_target_, so nothing can be made of it; did you mean checkpoint?",
        ),
        (
            "experiment=no_name",
            "hooks._target_=a.Spike: each of the hooks stands under a name of its own; for "
            "hooks/NAME.yaml a defaults list has the line `- /hooks/NAME: default`",
        ),
        ("model=target", "{conf}/model/target.yaml, line 1: model: has target: where _target_:"),
        ("model=empty", "{conf}/model/empty.yaml: is empty; a config holds keys and values"),
        ("experiment=items", "{conf}/experiment/items.yaml: holds a list; a config holds keys"),
        ("hooks=+text", "{conf}/hooks/text.yaml: holds text; a config holds keys and values"),
        (
            "experiment=bom",
            "{conf}/experiment/bom.yaml: begins with a byte order mark, behind which Hydra does "
            "not see a line such as `# @package _global_`; save it as UTF-8 without BOM",
        ),
        ("model=broken", "{conf}/model/broken.yaml, line 2, column 7: not valid yaml: "),
    ],
)
def test_mistake_in_a_folder_of_ones_own(
    cli: Callable[..., Any], my_conf: Path, words: str, message: str
) -> None:
    answer = cli("--config-dir", str(my_conf), *words.split(" "))
    assert answer.code == 1
    assert answer.message.startswith("hookexp: " + message.format(conf=my_conf))


@pytest.mark.parametrize(
    ("word", "file"),
    [
        ("model=short", "model/short.yml"),
        ("experiment=short.yml", "experiment/short.yml"),
        ("hooks=+ema+own", "hooks/own.yml"),
        ("hooks=+own", "hooks/own/default.yml"),
    ],
)
def test_a_file_that_ends_in_yml_is_shown(
    cli: Callable[..., Any], tmp_path: Path, word: str, file: str
) -> None:
    (tmp_path / "my_conf" / file).parent.mkdir(parents=True)
    (tmp_path / "my_conf" / file).write_text("_target_: a.B")
    message = f"hookexp: my_conf/{file}: Hydra reads files that end in .yaml; name it so"
    assert cli("--config-dir", "my_conf", word).message == message


@pytest.mark.parametrize(
    ("words", "file"),
    [
        ("experiment=mine", "experiment/mine.yaml"),
        ("model=empty", "model/empty.yaml"),
        ("hooks=+spike", "hooks/spike.yaml"),
        ("hooks=+step", "hooks/step/default.yaml"),
    ],
)
def test_a_file_in_a_folder_that_was_not_given_is_shown(
    cli: Callable[..., Any], my_conf: Path, words: str, file: str
) -> None:
    assert f"my_conf/{file} needs --config-dir my_conf" in cli(words).message


def test_a_file_in_another_encoding_is_named(cli: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "my_conf" / "experiment" / "cafe.yaml"
    file.parent.mkdir(parents=True)
    file.write_bytes("# @package _global_\nname: caf\xe9\n".encode("latin-1"))
    answer = cli("--config-dir", "my_conf", "experiment=cafe")
    assert answer.message.startswith(f"hookexp: {file}: is not UTF-8 (")


def test_a_folder_that_takes_no_lock_is_told(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def full(path: Any, *arguments: Any, **more: Any) -> int:
        if str(path).endswith(".lock"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *arguments, **more)

    monkeypatch.setattr(os, "open", full)
    answer = cli("hydra.run.dir=run")
    assert answer.message == (
        "hookexp: hydra.run.dir=run: cannot be written (no space left on device); choose another "
        "folder with hydra.run.dir=FOLDER"
    )


def test_a_sweep_under_torchrun_is_refused(cli: Callable[..., Any], monkeypatch: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    answer = cli("-m", "optimizer.lr=0.1,0.2")
    assert answer.code == 1
    assert answer.message.startswith("hookexp: -m: torchrun starts the ranks of one run, ")
    assert not (answer.folder / "outputs").exists()


def test_a_variable_that_is_not_set_is_told_with_its_path(
    cli: Callable[..., Any], my_conf: Path
) -> None:
    answer = cli("-cd", str(my_conf), "model=variable", "trainer.device=cpu")
    assert answer.code == 1
    assert (
        answer.message == f"hookexp: {my_conf}/model/variable.yaml, line 2: model.root: "
        "Environment variable 'NO_SUCH_VARIABLE' not found"
    )


def test_a_target_that_cannot_be_imported_is_told_once(cli: Callable[..., Any]) -> None:
    answer = cli("model._target_=no_such.Net", "trainer.device=cpu")
    assert answer.code == 1
    assert answer.out == ""
    assert answer.message.startswith(
        "hookexp: model._target_=no_such.Net: cannot be imported, there is no module no_such; write"
    )


def test_the_users_switch_shows_the_traceback_too(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    answer = cli("hooks=+emma")
    assert answer.code == 1
    assert "Traceback (most recent call last)" in answer.err
    assert answer.err.splitlines()[-1].startswith("hookexp: hooks=+emma: there is no hook")
