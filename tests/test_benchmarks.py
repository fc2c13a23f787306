"""The benchmarks run, cover what they say, and their arithmetic holds. How fast anything is, is not tested."""

import json
import math
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open

from experiments.benchmarks import grid, spectrum, throughput
from relora_lab import sizes


def test_throughput_has_a_row_for_each_cell_of_the_paper(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(throughput, "peak_alone", lambda *_: 2**20)
    options = "--size demo --sequence 16 --micro-batch 1 --vocabulary 300 --steps 1 --warmup 1"
    throughput.main([*options.split(), "--out", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    rows = found["rows"]
    cells = [(row["method"], row["d/r"], row["micro-batch"]) for row in rows]
    assert cells == [
        ("full", None, 1),
        ("galore", 4, 1),
        *[("relora", ratio, batch) for batch in (1, 2) for ratio in (4, 8, 16)],
    ]
    assert [row["P2 of full"] for row in rows][-1] == pytest.approx(142.1 / 137.3)
    full = rows[0]["examples/s"]
    for row in rows:
        assert row["of full"] == pytest.approx(row["examples/s"] / full)
        assert row["tokens/s"] == pytest.approx(16 * row["examples/s"])
    assert rows[2]["adjusted"] == pytest.approx(1 / (0.33 / full + 0.67 / rows[2]["examples/s"]))
    assert len(capsys.readouterr().out.splitlines()) == 9


@pytest.mark.slow
def test_peak_memory_is_that_of_a_process_of_its_own():
    options = ["--size", "9M", "--sequence", "64", "--micro-batch", "4", "--vocabulary", "8000"]
    cells = (throughput.Cell("full", None, 4), throughput.Cell("relora", 16, 4))
    full, relora = (throughput.peak_alone(cell, options) for cell in cells)
    assert 2**25 < relora < full < 2**29


def test_spectrum_has_a_row_for_each_case(tmp_path, monkeypatch, capsys):
    timed = ["svdvals", "notebook", "shapes", "factored"]
    monkeypatch.setattr(spectrum, "LIMITS", dict.fromkeys(spectrum.LIMITS, math.inf))
    options = ["--size", "demo", "--repeats", "1", "--only", *timed, "weightwatcher"]
    assert spectrum.main([*options, "--out", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    rows = {row["case"]: row for row in found["rows"]}
    assert rows.keys() == {*timed, "weightwatcher"}
    for case in timed:
        assert rows[case]["ratio"] == pytest.approx(rows[case]["ours"] / rows[case]["peer"])
        assert rows[case]["verdict"] == "ok"
    assert rows["weightwatcher"]["ratio"] is None
    assert "pip install weightwatcher" in rows["weightwatcher"]["verdict"]
    assert 0 <= found["zeros"]["error"]["ours"] < 1e-6
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows) + 1


def test_spectrum_fails_where_a_limit_is_not_held(monkeypatch, capsys):
    monkeypatch.setattr(spectrum, "LIMITS", spectrum.LIMITS | {"factored": 0.0, "shapes": math.inf})
    options = ["--size", "demo", "--repeats", "1", "--only"]
    assert spectrum.main([*options, "shapes", "factored"]) == 1
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:3]] == ["ok", "over"]
    assert spectrum.main([*options, "shapes"]) == 0


def test_sides_of_spectrum_have_to_agree():
    sides = {"ours": lambda: (1.0, [2.0]), "peer": lambda: (3.0, [2.1])}
    with pytest.raises(AssertionError, match="peer"):
        spectrum.medians(sides, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpoints_of_spectrum_are_those_of_a_whole_model(tmp_path, dtype):
    files = spectrum.write_pair(tmp_path, "demo", dtype)
    total, _ = sizes.count_parameters("demo", vocab_size=spectrum.VOCABULARY)
    for path in files:
        with safe_open(path, "pt") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 (no mapping)
        assert sum(tensor.numel() for tensor in tensors) == total
        assert {tensor.dtype for tensor in tensors} == {dtype}
        assert all(0.01 < tensor.float().std() < 0.03 for tensor in tensors)


@pytest.mark.slow
def test_memory_of_spectrum_is_that_of_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(spectrum, "LIMITS", spectrum.LIMITS | {"memory": math.inf})
    (row,) = spectrum.rows(spectrum.parse(["--size", "9M", "--only", "memory", "--layers", "1"]))
    assert row["verdict"] == "ok"
    assert 0 < row["ours"] < 100


def test_grid_measures_cells_that_do_nothing(capsys):
    """In a process of its own: whoever forks workers here forks them from a server that has imported other things."""
    command = [sys.executable, "-m", "experiments.benchmarks.grid", "--cells", "20", "--many", "60"]
    lines = subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.splitlines()
    assert ["20 no-op cells" in lines[0], "20 ended cells" in lines[1], "60 cells" in lines[2]] == [True] * 3
    assert grid.verdict({"no-op": 0.01, "status": 2.1}, 20, 60) == 1
    assert ["MISSED" in line for line in capsys.readouterr().out.splitlines()] == [False, True]
    assert grid.verdict({"no-op": 0.01, "status": 1.9}, 20, 60) == 0
