"""Trackers: each number arrives once, whatever becomes of the logs; and training does not notice."""

import json
import struct
import sys
import threading
import types

import pytest
from conftest import changed

from relora_lab import track, train
from relora_lab.errors import BadInput
from relora_lab.runs import RunFolder
from relora_lab.track import Tracker, following


@pytest.fixture
def folder(tmp_path, tiny):
    made = RunFolder(tmp_path / "runs" / "one")
    begin(made, changed(tiny))
    return made


def begin(folder, settings):
    folder.make()
    folder.write_config(settings)
    folder.write_environment({})


def write(folder, log, steps, **numbers):
    """Append a line a step, with the step's tenth as loss."""
    with (folder.path / f"{log}.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": step, "loss": step / 10, **numbers}) + "\n" for step in steps)


def cut(folder, log, lines):
    path = folder.path / f"{log}.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


# ---- what is read


def test_lines_come_once_and_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = track._Lines(path)
    assert list(lines.new()) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [line["step"] for line in lines.new()] == [1, 2]
    assert list(lines.new()) == []
    with path.open("a") as file:
        file.write('ep": 3}\n')
    assert [line["step"] for line in lines.new()] == [3]


@pytest.mark.parametrize(
    "again", ['{"step": 1}\n', '{"step": 1}\n{"step": 9, "tokens_per_second": 123}\n{"step": 3}\n']
)
def test_a_log_that_was_cut_back_is_read_from_the_start_even_if_it_has_grown_since(tmp_path, again):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')
    lines = track._Lines(path)
    assert len(list(lines.new())) == 2
    path.write_text(again)
    assert list(lines.new()) == [json.loads(line) for line in again.splitlines()]


# ---- TensorBoard


def events(folder):
    """(tag: [(step, value), ...]) of a run's event files, and the settings sent with them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    hparams = pytest.importorskip("tensorboard.plugins.hparams.plugin_data_pb2")
    found = accumulator.EventAccumulator(str(folder.path.parent / ".tensorboard" / folder.path.name))
    found.Reload()
    content = found.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    settings = hparams.HParamsPluginData.FromString(content).session_start_info.hparams
    tags = found.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags}, settings


def test_tensorboard_has_each_number_once_through_a_cut_and_another_session(folder):
    tracker = Tracker("tensorboard", [folder])
    tracker.update()
    write(folder, "metrics", range(1, 5), lr=0.5)
    tracker.update()
    write(folder, "metrics", range(5, 8), lr=0.5, grad_norm=None)
    write(folder, "eval", [6])
    tracker.update()
    cut(folder, "metrics", 3)
    cut(folder, "eval", 0)
    tracker.update()
    write(folder, "metrics", range(4, 11), lr=0.5)
    write(folder, "eval", [6, 9])
    tracker.close()
    write(folder, "metrics", [11], lr=0.5)
    expected = {
        "metrics/loss": [(step, pytest.approx(step / 10)) for step in range(1, 11)],
        "metrics/lr": [(step, 0.5) for step in range(1, 11)],
        "eval/loss": [(step, pytest.approx(step / 10)) for step in (6, 9)],
    }
    found, settings = events(folder)
    assert found == expected
    assert settings["method.rank"].number_value == 2
    assert settings["optimizer.betas"].string_value == "[0.9, 0.95]"
    with following("tensorboard", [folder]):
        pass
    expected["metrics/loss"].append((11, pytest.approx(1.1)))
    expected["metrics/lr"].append((11, 0.5))
    assert events(folder)[0] == expected


def test_a_run_is_taken_up_when_it_begins_and_closed_when_it_ends(tmp_path, tiny):
    folder = RunFolder(tmp_path / "run")
    tracker = Tracker("tensorboard", [folder])
    tracker.update()
    assert list(tmp_path.iterdir()) == []
    begin(folder, changed(tiny))
    write(folder, "metrics", [1])
    tracker.update()
    folder.write_status("finished", step=1)
    tracker.update()
    assert tracker._open == []
    assert events(folder)[0] == {"metrics/loss": [(1, pytest.approx(0.1))]}


# ---- Weights & Biases


class FakeRun:
    """What the module needs of a wandb run."""

    def __init__(self, summary):
        self.summary, self.lines, self.metrics, self.finished = summary, [], {}, False

    def define_metric(self, name, step_metric):
        self.metrics[name] = step_metric

    def log(self, line):
        self.lines.append(line)
        self.summary |= line

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A module in wandb's place that remembers summaries as the service does; `runs` has (arguments, run)."""
    fake = types.ModuleType("wandb")
    fake.runs, summaries = [], {}

    def init(**arguments):
        fake.runs.append((arguments, FakeRun(summaries.setdefault(arguments["id"], {}))))
        return fake.runs[-1][1]

    fake.init, fake.Settings = init, dict
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_goes_on_with_a_run_where_an_earlier_session_stopped(folder, wandb):
    write(folder, "metrics", [1, 2])
    write(folder, "eval", [2])
    Tracker("wandb", [folder]).close()
    cut(folder, "metrics", 1)
    write(folder, "metrics", [2, 3])
    Tracker("wandb", [folder]).close()
    (first, sent), (second, more) = wandb.runs
    assert sent.lines == [
        {"metrics/step": 1, "metrics/loss": 0.1},
        {"metrics/step": 2, "metrics/loss": 0.2},
        {"eval/step": 2, "eval/loss": 0.2},
    ]
    assert more.lines == [{"metrics/step": 3, "metrics/loss": 0.3}]
    assert first == second
    assert (first["name"], first["group"], first["resume"], first["reinit"]) == ("one", "runs", "allow", "create_new")
    assert sent.metrics == {"metrics/*": "metrics/step", "eval/*": "eval/step"}
    assert sent.finished
    assert more.finished


def test_wandb_knows_a_run_by_its_place_and_by_what_is_trained_there(folder, tiny, wandb):
    def identity(**training):
        folder.write_config(changed(tiny, training=training))
        Tracker("wandb", [folder]).close()
        return wandb.runs[-1][0]["id"]

    assert identity() == identity(threads=2, checkpoint_every=5)
    assert identity() != identity(seed=1)


def stored(path):
    """The records in a file of wandb: pieces of a record a frame, in blocks of 32 KiB, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    while at < len(data):
        if -at % 32768 < 7:  # no room for the head of a frame
            at += -at % 32768
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield Record.FromString(record)
            record = b""


def test_wandb_stores_two_runs_at_once(folder, tmp_path, tiny, monkeypatch, capfd):
    pytest.importorskip("wandb")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    other = RunFolder(folder.path.parent / "two")
    begin(other, changed(tiny))
    for session in (1, 2):  # the second one in place of the first
        write(folder, "metrics", range(500 * session - 499, 500 * session + 1))
        with following("wandb", [folder, other]):
            write(other, "eval", [7 * session])
    found = {}
    for path in folder.path.parent.glob(".wandb/offline-run-*/*.wandb"):
        records = list(stored(path))
        name = next(record.run.display_name for record in records if record.HasField("run"))
        assert name not in found
        history = [record.history for record in records if record.HasField("history")]
        lines = [{".".join(x.nested_key) or x.key: json.loads(x.value_json) for x in line.item} for line in history]
        found[name] = [{k: x for k, x in line.items() if not k.startswith("_")} for line in lines]
    assert found["one"] == [{"metrics/step": step, "metrics/loss": step / 10} for step in range(1, 1001)]
    assert found["two"] == [{"eval/step": step, "eval/loss": step / 10} for step in (7, 14)]
    assert capfd.readouterr() == ("", "")


# ---- what goes wrong


def test_an_error_ends_tracking_and_is_said_once(folder, monkeypatch, capsys):
    def explode(*_):
        raise RuntimeError("the service\nis down")

    monkeypatch.setattr(track._TensorBoard, "send", explode)
    write(folder, "metrics", [1])
    with following("tensorboard", [folder], every=0.01):
        write(folder, "metrics", [2])
    tracker = Tracker("tensorboard", [folder])
    tracker.update()
    tracker.close()
    said = "--track tensorboard: no longer, since the service is down; training goes on\n"
    assert capsys.readouterr() == ("", said * 2)  # one a tracker


def test_a_service_that_hangs_is_not_waited_for(folder, monkeypatch, capsys):
    answer = threading.Event()
    monkeypatch.setattr(track, "PATIENCE", 0.05)
    monkeypatch.setattr(track._TensorBoard, "close", lambda _: answer.wait())
    with following("tensorboard", [folder], every=0.01):
        pass
    assert "given up" in capsys.readouterr().err
    answer.set()


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_missing_library_is_named_with_the_fix(kind, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == kind]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(BadInput) as error:
        track.require_library(kind)
    assert str(error.value) == f"--track {kind}: needs {kind}; pip install 'relora-lab[{kind}]'"


# ---- training


def test_training_is_the_same_with_a_tracker(tmp_path, tiny):
    pytest.importorskip("tensorboard")

    def trained(runs, follow):
        folder = RunFolder(tmp_path / runs / "run")
        if follow:
            with following("tensorboard", [folder], every=0.005):
                train.run(changed(tiny), folder.path)
        else:
            train.run(changed(tiny), folder.path)
        lines = [line | {"tokens_per_second": None} for line in folder.logs.read("metrics")]
        return folder, folder.manifest | {"metrics.jsonl": lines}  # which has the time of each step

    _, alone = trained("alone", False)
    folder, followed = trained("followed", True)
    assert followed == alone
    losses = [line["loss"] for line in followed["metrics.jsonl"]]
    assert [step for step, _ in events(folder)[0]["metrics/loss"]] == list(range(1, 61))
    assert [loss for _, loss in events(folder)[0]["metrics/loss"]] == pytest.approx(losses)
