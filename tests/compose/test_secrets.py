"""Secrets are in no file of a run, and what is no secret is still there to read."""

from __future__ import annotations

import sys

import pytest

from hookexp import verify
from hookexp.compose.secrets import MASK, masked, masked_words
from hookexp.data.digits import Digits
from hookexp.hook import Hook

SECRET = "hunter2"


def test_keys_whose_last_word_is_secret_are_masked():
    config = {
        "api_key": SECRET,
        "wandb": {"settings": {"auth_token": SECRET, "token": "${oc.env:TOKEN}"}},
        "accessToken": SECRET,
        "aws_secret_access_key": SECRET,
        "keys": {
            "privateKey": SECRET,
            "secret_key": SECRET,
            "access_key_id": "me",
            "key": "public",
        },
        "storage": f"postgresql://me:{SECRET}@host:5432/db",
        "tokens": 5,
        "secret_santa": "no secret",
        "passwords": [SECRET],
        "list": [{"db_password": SECRET}],
        "overrides": [f"a.api_key={SECRET}", "lr=0.1"],
        "secret": None,
    }
    assert masked(config) == {
        "api_key": MASK,
        "wandb": {"settings": {"auth_token": MASK, "token": "${oc.env:TOKEN}"}},
        "accessToken": MASK,
        "aws_secret_access_key": MASK,
        "keys": {"privateKey": MASK, "secret_key": MASK, "access_key_id": "me", "key": "public"},
        "storage": f"postgresql://me:{MASK}@host:5432/db",
        "tokens": 5,
        "secret_santa": "no secret",
        "passwords": [SECRET],
        "list": [{"db_password": MASK}],
        "overrides": [f"a.api_key={MASK}", "lr=0.1"],
        "secret": None,
    }


def test_words_of_the_command_line():
    assert masked_words(f"+sinks.wandb.settings.api_key={SECRET}").endswith(f"api_key={MASK}")
    assert masked_words("x.token=${oc.env:X}") == "x.token=${oc.env:X}"
    assert masked_words("trainer.max_epochs=3") == "trainer.max_epochs=3"
    assert masked_words(f"a.password={SECRET},lr=0.1") == f"a.password={MASK},lr=0.1"
    assert masked_words("data.tokens=3") == "data.tokens=3"


@pytest.mark.parametrize(
    "word",
    [
        "+db={{host: h, password: {}, port: 1}}",
        "+db={{host: h, 'password': \"{}, {}\"}}",
        "+dbs=[{{api_key: {}}}]",
        "+db.password='{}, {}'",
        "+db.password={} {}",
        "+db.token=[{},{}]",
        "+db.dbPassword={}",
        "+db.aws_secret_access_key={}",
        "+db.passphrase={}",
        "+db.url=postgresql://me:{}@host/db",
        "+db.url='https://:{}@host'",
        r"+db.url=postgresql\://me\:{}@host/db",
    ],
)
def test_a_secret_in_any_syntax(word):
    text = masked_words(word.format(SECRET, SECRET))
    assert SECRET not in text and MASK in text


@pytest.mark.parametrize(
    "word",
    [
        "+db={host: h, token: ${oc.env:X}, password: '${oc.env:Y}'}",
        r"+db.token=$\{oc.env\:X\}",  # As Hydra writes the words of a sweep.
        "model.token={dim: 64, depth: 2}",
        "data.train.tokenizer=bpe",
        "+note=a:b",
        "+url=https://host:80/a@b",
        "+url=postgresql://me:${oc.env:X}@host",
        "+data.key=label",
    ],
)
def test_what_is_no_secret_in_any_syntax(word):
    assert masked_words(word) == word


class Guarded(Digits):
    def __init__(self, split, api_key):
        super().__init__(split)


def test_what_to_type_next_is_told_without_secrets(cli):
    words = [f"data.train._target_={__name__}.Guarded", f"+data.train.api_key={SECRET}"]
    answer = cli(*words, "trainer.fast_dev_run=true", "hydra.run.dir=mine")
    assert "test it: " in answer.out and "api_key=***" in answer.out
    for path in (path for path in (answer.folder / "mine").rglob("*") if path.is_file()):
        assert SECRET.encode() not in path.read_bytes(), path


def test_what_a_sweep_prints_holds_no_secret(cli, monkeypatch):
    def fail(cfg, work_dir):
        raise ValueError("boom")

    monkeypatch.setattr("hookexp.build.summary_of_finished_run", fail)
    answer = cli("-m", "hydra.sweep.dir=sweep", f"+mine.password={SECRET}", "seed=1,2")
    assert answer.code == 1
    assert SECRET not in answer.out + answer.err
    assert answer.out.count("+mine.password=***") == 2  # Hydra's lines, one for each job.
    assert "run 1 (+mine.password=*** seed=2) failed: ValueError: boom" in answer.err


class KeepsWords(Hook):
    """As W&B does."""

    def before_run(self, runner):
        (runner.work_dir / "words.txt").write_text(" ".join(sys.argv))


def test_what_saves_the_command_line_saves_no_secret(cli):
    words = [f"+hooks.keeps._target_={__name__}.KeepsWords", f"+mine.password={SECRET}"]
    answer = cli(*words, "trainer.fast_dev_run=true", "hydra.run.dir=mine")
    assert answer.code == 0
    kept = (answer.folder / "mine" / "words.txt").read_text()
    assert SECRET not in kept and "+mine.password=***" in kept
    assert f"+mine.password={SECRET}" in sys.argv


def test_while_a_sweep_runs_its_file_holds_no_secret(cli, monkeypatch):
    seen = []

    def look(cfg, work_dir):
        seen.append((work_dir.parent / "multirun.yaml").read_text())

    monkeypatch.setattr("hookexp.build.summary_of_finished_run", look)
    cli("-m", "hydra.sweep.dir=sweep", f"+mine.password={SECRET}", "trainer.fast_dev_run=true")
    assert len(seen) == 1
    assert SECRET not in seen[0] and "+mine.password=***" in seen[0]


def test_no_file_of_a_run_or_a_sweep_holds_one(cli, stub_runs, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", SECRET)
    secret = [f"+data.api_key={SECRET}", "+data.token=${oc.env:MY_TOKEN}"]
    secret.append(f"+data.db={{host: h, password: {SECRET}}}")
    assert cli(*secret).code == 0
    assert cli("-m", "optimizer.lr=0.1,0.2", *secret).code == 0
    files = [p for p in (cli("--help").folder / "outputs").rglob("*") if p.is_file()]
    assert len(files) > 6
    for path in files:
        assert SECRET not in path.read_text(), path
        assert SECRET not in str(path)
    configs = [p for p in files if p.name == "config.yaml"]
    assert len(configs) == 3
    assert all(MASK in p.read_text() and "oc.env:MY_TOKEN" in p.read_text() for p in configs)


def test_another_mode_leaves_the_config_of_the_training_as_it_is(cli, stub_runs, monkeypatch):
    monkeypatch.setattr(verify, "verify_resume", lambda cfg, work_dir: None)
    assert cli("hydra.run.dir=mine", "optimizer.lr=0.3").code == 0
    for mode in ("test", "val", "test"):
        assert cli("hydra.run.dir=mine", f"mode={mode}", "load_from=mine").code == 0
    assert cli("hydra.run.dir=mine", "mode=verify_resume").code == 0
    folder = cli("--help").folder / "mine"
    trained, tested = (folder / name / "overrides.yaml" for name in (".hydra", ".hydra_test"))
    assert "optimizer.lr=0.3" in trained.read_text() and "mode=test" not in trained.read_text()
    assert "mode=test" in tested.read_text() and (folder / ".hydra_val").is_dir()
    assert (folder / ".hydra_verify_resume").is_dir()
