"""The notebooks: one question each, short, kept without outputs; they run on any folder of comparable runs."""

import json
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT, changed, tiny_tables

from relora_lab import train

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUNS = re.compile(r'^RUNS = ".*"$', re.MULTILINE)
CELLS = {  # label: what differs from the tiny ReLoRA run; ΔW of all is measured from step 20
    "full": {"method": {"name": "full"}, "training": {"warm_start": 0}, "optimizer": {"low_rank_lr": 3e-3}},
    "relora": {},
    "lora-warm": {"method": {"name": "lora", "rank": 2}},
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three kinds of run, two seeds each."""
    out = tmp_path_factory.mktemp("notebooks") / "runs"
    for seed in (0, 1):
        for label, parts in CELLS.items():
            training = {"seed": seed, "reference_step": 20, **parts.get("training", {})}
            train.run(changed(tiny_tables(), **{**parts, "training": training}), out / f"{label}-seed{seed}")
    return out


def outputs(path, runs):
    """What the cells of a notebook put out on these runs; it runs beside them."""
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    for cell in code(notebook):
        cell.source = RUNS.sub(lambda _: f"RUNS = {str(runs)!r}", cell.source)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(runs.parent)}}).execute()
    return [output for cell in code(notebook) for output in cell.outputs]


def code(notebook):
    """Its code cells."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(found):
    """All that outputs say, in one line."""
    return " ".join(output.get("text", "") + output.get("data", {}).get("text/html", "") for output in found)


@each_notebook
def test_a_notebook_asks_a_question_is_short_and_is_kept_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells) <= 15
    title = notebook.cells[0].source.splitlines()[0]
    assert notebook.cells[0].cell_type == "markdown"
    assert re.fullmatch(r"# .*\?.*", title)
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))
    assert sum(len(RUNS.findall(cell.source)) for cell in code(notebook)) == 1
    assert max(len(cell.source.splitlines()) for cell in notebook.cells) <= 20
    links = [link for cell in notebook.cells for link in re.findall(r"\]\(([^)]+\.ipynb)\)", cell.source)]
    assert all((path.parent / link).exists() for link in links)


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=" ".join)
def test_their_code_is_as_tidy_as_the_rest(command):
    done = subprocess.run([sys.executable, "-m", "ruff", *command, *NOTEBOOKS], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs_on_these_runs_without_a_warning(path, folder):
    found = outputs(path, folder)
    assert len([output for output in found if "image/png" in output.get("data", {})]) >= 2
    assert not [output["text"] for output in found if output.get("name") == "stderr"]


@pytest.mark.slow
def test_one_seed_and_a_diverged_run_are_said_in_words(folder, tmp_path):
    [path] = [path for path in NOTEBOOKS if "noise" in path.stem]
    for label in CELLS:
        shutil.copytree(folder / f"{label}-seed0", tmp_path / "runs" / f"{label}-seed0")
    status = tmp_path / "runs" / "lora-warm-seed0" / "status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "state": "diverged", "reason": "the loss rose"}))
    said = " ".join(text(outputs(path, tmp_path / "runs")).split())
    for words in ("one seed: no error", "so there are no intervals", "diverged at step 60", "the loss rose"):
        assert words in said
