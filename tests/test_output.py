"""Where results may go, and how numbers and foreign text are shown in a terminal."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import output
from analysis.tables import show, shown
from relora_lab.errors import BadInput, printable
from relora_lab.runs import RunFolder


@pytest.fixture
def runs(tmp_path):
    """A folder of one run, which has a final/."""
    run = tmp_path / "runs" / "x"
    (run / "final").mkdir(parents=True)
    (run / "config.toml").touch()
    RunFolder(run).write_environment({"python": "3"})
    return tmp_path / "runs"


@pytest.mark.parametrize("inside", ["x", "x/final", "x/new", "x/final/a/b", "beside/../x/final", "link", "link/new"])
def test_nothing_is_written_into_a_run(runs, inside, monkeypatch):
    (runs / "link").symlink_to(runs / "x" / "final")
    for base, out in ((runs, runs / inside), (runs, inside), (runs / "x", f"../{inside}")):
        monkeypatch.chdir(base)
        with pytest.raises(BadInput, match=r"--out .*: is (a|inside the) run folder.*choose another one"):
            output.check(out)
    monkeypatch.chdir(runs / "x" / "final")
    with pytest.raises(BadInput, match="is inside the run folder"):
        output.check("report")


def test_beside_runs_and_in_other_projects_there_is_room(runs):
    (runs / "config.toml").touch()
    for out in (runs / "report", runs / "x-report" / "new", runs / ".." / "out"):
        assert output.check(out) == out


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (681044732610556592128.0, 3, "6.8e20"),
        (-1.25e7, 3, "−1.2e7"),
        (1e7, 1, "1.0e7"),
        (1e100, 3, "1.0e100"),
        (9_999_999.0, 3, "9,999,999.000"),
        (31_999.5, 2, "31,999.50"),
        (12_345_678_901, 3, "12,345,678,901"),
        (np.int64(-12_345_678), 3, "−12,345,678"),
        (0.0, 3, "0.000"),
        (0.00012, 3, "1.2e−4"),
        (-1.2e-11, 3, "−1.2e−11"),
        (1e-200, 3, "1.0e−200"),
        (float("inf"), 3, "inf"),
        (float("-inf"), 3, "−inf"),
        (float("nan"), 3, "–"),
        (True, 3, "✓"),
    ],
)
def test_a_number_is_as_long_as_it_can_be_read(value, digits, text):
    assert show(value, digits) == text


@given(st.floats(1e7, 1e300) | st.floats(1e-300, 4e-4))
def test_a_short_number_is_the_number(value):
    assert float(show(value).replace("−", "-")) == float(f"{value:.1e}")


@given(st.text())
def test_text_is_shown_on_one_line_that_a_terminal_does_not_obey(text):
    assert show(text).isprintable()
    assert show(text) == printable(text) == str(BadInput(text))[: len(printable(text))]
    if text.isprintable():
        assert show(text) == text


def test_a_table_of_foreign_text_has_no_escapes():
    frame = pd.DataFrame(
        {"label": pd.Categorical(["\x1b[31m", "b"]), "role": ["q\r\n\x9b2J", "é 中"], "rank": [1, 2]}
    )
    table = shown(frame)
    assert table["label"].tolist() == [r"\x1b[31m", "b"]
    assert table["role"].tolist() == [r"q\r\n\x9b2J", "é 中"]
    assert all(line.isprintable() for line in table.to_string(index=False).split("\n"))
