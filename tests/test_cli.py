"""The command: help at once, exit codes, one line an error."""

import os
import subprocess
import sys

import pytest
from conftest import changed, run

from relora_lab import config, train
from relora_lab.runs import RunFolder


@pytest.fixture
def settings(tmp_path, tiny, monkeypatch):
    """The tiny run's file, and a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.toml"
    path.write_text(config.dumps(changed(tiny)))
    return path


def test_help_needs_no_heavy_import():
    check = """
import sys
from relora_lab import cli
try:
    cli.main(["train", "--help"])
except SystemExit as stop:
    assert not stop.code
print("heavy:", *({"torch", "numpy", "transformers", "pydantic", "pandas"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == "heavy:"
    assert "--resume" in done.stdout


def test_train_makes_a_run_resumes_it_and_says_what_it_reached(settings, tmp_path, capsys):
    code, out, _ = run(capsys, "train", settings, "--out", tmp_path / "runs" / "a", "--set", "method.rank=3")
    assert code == 0
    folder = RunFolder(tmp_path / "runs" / "a")
    assert folder.config.method.rank == 3
    assert f"finished at step 60, perplexity {folder.final_evaluation['perplexity']:.5g} (loss" in out
    again = run(capsys, "train", settings, "--out", folder.path, "--set", "method.rank=3", "--resume")
    assert again[:2] == (0, out)


def test_the_default_folder_is_named_by_what_is_in_it(settings, tmp_path, capsys):
    assert run(capsys, "train", settings)[0] == 0
    [folder] = [path for path in (tmp_path / "runs").iterdir() if not path.name.startswith(".")]
    assert folder.name == f"relora-demo-0-{config.digest(config.load(settings))}"


@pytest.mark.parametrize(("on", "library"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_whose_library_is_missing_says_how_to_get_it(on, library, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    code, _, err = run(capsys, "grid", "demo", "--on", on, "--out", tmp_path / "runs")
    assert (code, err) == (2, f"relora-lab: --on {on}: needs {library}; pip install 'relora-lab[{on}]'\n")
    assert not (tmp_path / "runs").exists()


def test_the_engine_and_what_sbatch_is_told_come_from_the_command_line(tmp_path, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr("relora_lab.launch.slurm.launch", lambda *_, **given: seen.append(given) or 1 / 0)
    run(capsys, "grid", "demo", "--on", "slurm", "--slurm", "time=10:00:00", "--slurm", "exclusive")
    options = {"time": "10:00:00", "exclusive": True}
    assert seen == [{"options": options, "workers": 100, "title": "demo"}]
    code, _, err = run(capsys, "grid", "demo", "--slurm", "time=5", "--out", tmp_path / "runs")
    assert (code, err) == (2, "relora-lab: --slurm: is for --on slurm\n")


def test_precision_and_compile_have_options_of_their_own(settings, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "run", lambda run_config, *_, **__: seen.append(run_config.training) or 1 / 0)
    run(capsys, "train", settings, "--precision", "bf16", "--compile")
    run(capsys, "train", settings)
    assert [(training.precision, training.compile) for training in seen] == [("bf16", True), ("float32", False)]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.restart_evrey=3", "did you mean 'restart_every'?"),
        ("data.corpus=nowhere.txt", "data.corpus: nowhere.txt: cannot be read"),
        ("data.sequence_length=100000", "needs > sequence length 100000"),
        ("training.device=cudaa", "training.device: 'cudaa' is no device"),
        ("training.device=mps", "training.device: 'mps' is no device"),
        ("training.device=cuda:99", "training.device: 'cuda:99' is asked for; torch finds"),
        ("nonsense", "--set nonsense: write --set table.field=value"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_nothing_is_written(settings, tmp_path, capsys, override, message):
    code, out, err = run(capsys, "train", settings, "--out", tmp_path / "runs" / "a", "--set", override)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_an_output_folder_that_cannot_be_written_is_exit_2(settings, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    refused = dict.fromkeys(("file/run", "/proc/run", f"{'x' * 300}/run"), "cannot be written")
    refused |= dict.fromkeys(("..", "./-rf", "", "x" * 10000), "is no run name")
    for out, message in refused.items():
        code, _, err = run(capsys, "train", settings, "--out", out)
        assert (code, len(err.splitlines())) == (2, 1)
        assert message in err
    assert run(capsys, "train", settings, "--out", "-rf")[0] == 2
    assert run(capsys, "demo", "--workers", "0")[0] == 2


def test_a_folder_that_is_held_is_exit_4(settings, capsys):
    folder = RunFolder("runs/a")
    folder.make()
    with folder.lock():
        code, _, err = run(capsys, "train", settings, "--out", folder.path)
    assert code == 4
    assert f"is held by process {os.getpid()}" in err


def test_a_diverged_run_is_exit_5(settings, capsys):
    overrides = ["--set", "optimizer.low_rank_lr=100", "--set", "optimizer.clip=inf"]
    code, out, _ = run(capsys, "train", settings, "--out", "runs/a", *overrides)
    assert code == 5
    assert "diverged (" in out


def test_a_failure_is_exit_1_in_one_line_and_a_traceback_only_with_debug(settings, capsys, monkeypatch):
    monkeypatch.setattr("relora_lab.trainer.Trainer.train", lambda _: 1 / 0)
    code, _, err = run(capsys, "train", settings, "--out", "runs/a")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "ZeroDivisionError" in err
    _, _, err = run(capsys, "train", settings, "--out", "runs/b", "--debug")
    assert "Traceback" in err


def test_python_m_works_where_folders_have_the_names_of_ours(settings, tmp_path):
    for name in ("analysis", "experiments"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('not this one')")
    command = [sys.executable, "-m", "relora_lab", "train", settings, "--set", "training.steps=26"]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert "finished at step 26" in done.stdout


def test_progress_tells_loss_speed_and_time_left(settings, capsys):
    _, _, err = run(capsys, "train", settings, "--out", "runs/a")
    last = err.strip().splitlines()[-1].split("\r")[-1]
    assert "100%" in last
    assert "loss" in last
    assert "tokens/s" in last
