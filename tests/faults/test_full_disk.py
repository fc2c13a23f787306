"""A full disk, struck by log, checkpoint, weights or report: said in one line, and nothing is lost."""

import os
import re
import subprocess

import pytest
from fault_runs import Command, content, faults_below, tiny_run, torn, train_run

from relora_lab import checkpoints, config, train
from relora_lab.runs import RunFolder

# What is struck: from where on, the sizes that no file may exceed from there, and what cannot be written.
STRUCK = {
    "log": ("update 39", [2000, 0, 500, 1000, 3000], r"\w+\.jsonl|status\.json"),
    "checkpoint": ("begun 000000040", [20_000, 0, 1, 500, 5_000], r"checkpoints/\S+/\w+\.safetensors"),
    "weights": ("begun final", [20_000, 0, 1, 1000, 30_000], r"final/\S+"),
}
CASES = [
    pytest.param(what, size, marks=[pytest.mark.faults] if number else [], id=f"{what}-{size}")
    for what, (_, sizes, _) in STRUCK.items()
    for number, size in enumerate(sizes)
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed, without stages."""
    return train.run(tiny_run(), tmp_path_factory.mktemp("undisturbed") / "run", cuts=())


@pytest.fixture
def settings(tmp_path):
    """A file of the run's settings."""
    path = tmp_path / "run.toml"
    path.write_text(config.dumps(tiny_run()))
    return path


def complaint(lines):
    """What could not be written, what it needs and what is free, of the one line that was said."""
    (line,) = lines
    found = re.fullmatch(r"relora-lab: no space left: writing (\S+), needs ([\d,]+) bytes, free ([\d,]+)", line)
    assert found, line
    return found[1], *(int(number.replace(",", "")) for number in (found[2], found[3]))


@pytest.mark.parametrize(("what", "size"), CASES)
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_space(
    tmp_path, whole, settings, record_property, what, size
):
    record_property("experiment", f"full disk: {what}")
    point, _, struck = STRUCK[what]
    out = tmp_path / "runs" / "run"
    code, said = Command("train", settings, "--out", out, fault=f"full:{size}@{point}").ended()
    path, needs, free = complaint(said)
    assert code == 1
    assert re.search(struck, path)
    assert needs > free == size
    assert faults_below(tmp_path / "runs") == torn(tmp_path / "runs") == []
    (newest,) = checkpoints.states(RunFolder(out).checkpoints)
    checkpoints.load(newest)
    train_run(tiny_run(), out)
    assert content(out) == content(whole)


@pytest.mark.parametrize("size", [500, *(pytest.param(n, marks=pytest.mark.faults) for n in (0, 1, 5000, 40_000))])
def test_a_report_that_does_not_fit_leaves_the_old_one(tmp_path, whole, record_property, size):
    record_property("experiment", "full disk: report")
    out = tmp_path / "report"
    assert Command("report", whole, "--out", out).ended() == (0, [])
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    code, said = Command("report", whole, "--out", out, fault=f"full:{size}@begun report.md").ended()
    path, needs, free = complaint(said)
    assert code == 1
    assert path.startswith(str(out))
    assert needs > free == size
    assert all(path.read_bytes() == written for path, written in before.items())
    assert torn(out) == []


def mounted(folder, kilobytes):
    """Give a folder a disk of its own of this size, or another size."""
    how = f"{'remount,' if os.path.ismount(folder) else ''}size={kilobytes}k"
    command = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(folder)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("share", [0.6, *(pytest.param(s, marks=pytest.mark.faults) for s in (0.15, 0.3, 0.45, 0.8))])
def test_a_real_disk_that_is_full(tmp_path, whole, settings, record_property, share):
    """Of a share of what the run needs at its end: it strikes the tokens, a log, a checkpoint or the weights."""
    record_property("experiment", "full disk: tmpfs")
    disk = tmp_path / "disk"
    disk.mkdir()
    needed = sum(path.stat().st_size for path in whole.parent.rglob("*") if path.is_file()) / 1024
    if not mounted(disk, round(share * needed)):
        pytest.skip("no disk can be mounted here")
    try:
        code, said = Command("train", settings, "--out", disk / "run").ended()
        path, needs, free = complaint(said)
        assert code == 1
        assert path.startswith(str(disk))
        assert needs > free
        assert faults_below(disk) == torn(disk) == []
        assert mounted(disk, 100 * 1024)
        train_run(tiny_run(), disk / "run")
        assert content(disk / "run") == content(whole)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
