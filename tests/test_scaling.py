"""The table of sizes in docs/scaling.md is what the commands that it names say."""

import re

import pytest
from conftest import ROOT

from relora_lab import config
from relora_lab.memory import report

DOC = (ROOT / "docs" / "scaling.md").read_text()
SETTINGS = re.search(r"```toml plan\n(.*?)```", DOC, re.DOTALL)[1]
TABLE = re.search(r"\| size \|.*?\n\n", DOC, re.DOTALL)[0]


def planned(settings):
    """Peak and peak after the warm start in GiB, GPU-hours at 70 TFLOP/s, as the table has them."""
    found = report.of_run(settings, 70)
    totals = {moment: cells["total"] for moment, cells in found.rows.items()}
    later = [total for moment, total in totals.items() if not moment.startswith("warm start")]
    low_rank = f"{max(later):.1f}" if settings.low_rank else "–"
    return [f"{max(totals.values()):.1f}", low_rank, f"{found.facts['flops'] / 70e12 / 3600:,.0f}"]


def test_gradients_that_are_sent_are_those_of_the_plan(tmp_path):
    (tmp_path / "run.toml").write_text(SETTINGS)
    rows = report.of_run(config.load(tmp_path / "run.toml")).rows
    low, full = rows["optimizer"]["grad"], rows["warm start: optimizer"]["grad"]
    assert f"{low:.2f} GiB an\nupdate in place of {full:.2f} GiB" in DOC


@pytest.mark.parametrize("line", [line for line in TABLE.splitlines()[2:] if line])
def test_memory_and_work_are_those_of_the_plan(line, tmp_path):
    size, method, overrides, *expected = (cell.strip() for cell in line.strip("|").split("|"))
    text = SETTINGS.replace('"1.3B"', f'"{size}"')
    if method == "full":
        text = re.sub(r"\[method\].*?(?=\[)", '[method]\nname = "full"\n', text, flags=re.DOTALL)
        text = re.sub(r"warm_start = \S+", "", text)
    (tmp_path / "run.toml").write_text(text)
    given = [part for part in overrides.replace("`", "").split(", ") if part != "–"]
    assert planned(config.load(tmp_path / "run.toml", given)) == expected
