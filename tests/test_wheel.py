"""The wheel holds what it needs, and works where folders have the names of ours."""

import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile

import pytest
from conftest import ROOT, changed

from relora_lab import config


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("relora_lab", "analysis", "experiments", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source / name)
    out = source / "dist"
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--wheel-dir", out, source], check=True)
    [found] = out.glob("*.whl")
    return found


def test_it_holds_the_listed_packages_and_the_grids(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {
        "relora_lab",
        "analysis",
        "experiments",
    }
    grids = {path.relative_to(ROOT).as_posix() for path in (ROOT / "experiments").rglob("*.toml")}
    assert grids
    assert grids <= set(names)


@pytest.mark.slow
def test_it_works_in_a_fresh_environment_beside_folders_of_the_same_names(wheel, tmp_path, tiny):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, wheel], check=True)
    # The libraries of this environment, without the editable install that its .pth files make.
    [site] = (tmp_path / "venv").glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_paths()["purelib"])
    work = tmp_path / "work"
    for name in ("analysis", "experiments"):
        (work / name).mkdir(parents=True)
        (work / name / "__init__.py").write_text("raise RuntimeError('not this one')")
    (work / "run.toml").write_text(config.dumps(changed(tiny)))

    command = tmp_path / "venv" / "bin" / "relora-lab"
    where = [python, "-P", "-c", "import relora_lab; print(relora_lab.__file__)"]
    assert str(site) in subprocess.run(where, capture_output=True, text=True, check=True, cwd=work).stdout
    done = subprocess.run([command, "train", "run.toml"], capture_output=True, text=True, cwd=work)
    assert done.returncode == 0, done.stderr
    assert "finished at step 60" in done.stdout

    demo = subprocess.Popen([command, "demo", "--out", "demo"], cwd=work, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(600):
            if (work / "demo" / "full-seed0" / "config.toml").exists() or demo.poll() is not None:
                break
            time.sleep(0.1)
        assert demo.poll() is None, demo.stderr.read()
    finally:
        demo.send_signal(signal.SIGTERM)
        try:
            assert demo.wait(60) == 128 + signal.SIGTERM  # its workers have saved their state and ended
        finally:
            demo.kill()
