"""The benchmarks run, cover what they say, and their arithmetic holds. How fast anything is, is not tested."""

import json

import pytest

from experiments.benchmarks import throughput


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
