"""Every command of the README and of docs/ does what it is there for.

RUNS has those that run here, in the folder of documented_folder.py, with all that is changed to make them short.
PARSED has those that take hours, a network, a GPU or a cluster: their own parsers accept them, and what they name is
there. A command that is in neither fails.
"""

import argparse
import inspect
import io
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from math import inf
from pathlib import Path
from typing import Any

import documented_folder
import pytest
from conftest import ROOT, run
from packaging.requirements import Requirement

from analysis.report import drawing
from relora_lab import cli, grid

PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


@dataclass(frozen=True)
class Runs:
    """How a command is run: in all but what is given here as it stands."""

    told: str  # what it prints matches this
    makes: str = ""  # what is not there before and is there afterwards
    more: str = ""  # further words
    instead: Mapping[str, str] = field(default_factory=dict)  # words in place of others
    answer: str = ""  # what is typed
    stubs: Mapping[str, object] = field(default_factory=dict)  # what stands in, for numbers and functions of ours


STEP = "--size demo --vocabulary 300 --sequence 8 --micro-batch 1 --ranks 4 --repeats 1 --warmup 1 --only step"
YARDSTICKS = {"experiments.benchmarks.roofline.PRODUCT": {"cpu": 16}, "experiments.benchmarks.roofline.COPIED": 1024}
THROUGHPUT = "--size demo --sequence 16 --micro-batch 1 --vocabulary 300 --steps 1 --warmup 1"
ALONE = {"experiments.benchmarks.throughput.peak_alone": lambda *_: 2**20}  # a process for each cell
SPECTRUM = "--size demo --repeats 1 --only svdvals factored"
NO_LIMITS = {"experiments.benchmarks.spectrum.LIMITS": {"svdvals": inf, "factored": inf}}  # they are for other shapes
HUB = {"huggingface_hub.snapshot_download": lambda *_, **__: "base"}
LITTLE = {"table6": "table6.toml"}  # three of its rows, one seed, 60 updates

RUNS = {  # in README
    "relora-lab train runs/demo/full-seed0/config.toml --out runs/demo/control --set model.size=control:demo"
    " --set name=control": Runs(r"runs/demo/control: finished at step 60", "runs/demo/control"),
    "relora-lab train relora.toml --out runs/relora": Runs(r"runs/relora: finished at step 60", "runs/relora"),
    "relora-lab train relora.toml --out runs/no-reset --set method.optimizer_reset=none": Runs(
        r"runs/no-reset: finished at step 60", "runs/no-reset"
    ),
    "relora-lab train relora.toml --out runs/relora --resume": Runs(
        r"(?s)runs/relora: finished at step 60.* 45/60 \[00:00"
    ),
    "relora-lab grid table6 --profile cpu --dry-run": Runs(
        r"(?s)all-shared-seed\{0,1,2\} .*Sharing saves", more="--out runs/new"
    ),
    "relora-lab grid table6 --profile cpu": Runs(
        r"(?s)all-shared-seed0 .* finished\n.*The report is runs/table6-cpu/report/report\.html",
        "runs/table6-cpu",
        instead=LITTLE,
    ),
    "relora-lab status runs/table6-cpu --watch": Runs(r"4 finished"),
    "relora-lab plan": Runs(r"(?s)350M.*256.*galore"),
    "relora-lab plan relora.toml --tflops 70": Runs(r"GPU-hours"),
    "python -m experiments.benchmarks.step --repeats 3": Runs(
        r"step .* relora 4 +peft 4", more=STEP, stubs=YARDSTICKS
    ),
    "python -m experiments.benchmarks.throughput": Runs(r"relora +16 +2", more=THROUGHPUT, stubs=ALONE),
    "relora-lab report runs/demo --out report": Runs(r"The report is report/report\.html", "report"),
    "relora-lab spectrum runs/demo/relora-seed0": Runs(r"14 matrices"),
    "relora-lab spectrum base-model tuned-model --threshold 0.1 --threshold 0.5 --out spectra": Runs(
        r"(?s)0\.1.*0\.5.*written to spectra", "spectra"
    ),
    "relora-lab runs runs/demo": Runs(r"(?s)full-seed0.*lora-warm-seed0"),
    "relora-lab runs diff runs/demo/relora-seed0 runs/demo/lora-warm-seed0": Runs(r"method\.restart_every +14 → –"),
    "relora-lab runs check runs/demo": Runs(r"runs/demo: \d\d checks, 0 faults"),
    "relora-lab runs clean runs/demo": Runs(r"(?s)checkpoints.*Remove these .*\? \[y/N\] removed", answer="y\n"),
    "relora-lab export runs/demo/relora-seed0 --out adapter": Runs(
        r"adapter: an adapter of rank 6 to runs/demo/relora-seed0/warm_start", "adapter"
    ),
    "relora-lab spectrum meta-llama/Llama-3.1-8B ./my-tuned-model": Runs(r"16 matrices", stubs=HUB),
    "relora-lab spectrum ./base ./my-lora-adapter --vectors": Runs(r"(?s)8 matrices.*intruder"),
    "relora-lab spectrum ./base ./full ./lora ./relora --role q --role v --layer 0-7 --out spectra": Runs(
        r"(?s)16 matrices.* ./full\n.*16 matrices.* ./lora\n.*16 matrices.* ./relora\n", "spectra"
    ),
    "python -m experiments.benchmarks.spectrum --weightwatcher ~/ww/bin/python": Runs(
        r"(?s)svdvals .* ok\n.*factored .* ok\n", more=SPECTRUM, stubs=NO_LIMITS
    ),
} | {  # in docs/
    "relora-lab report runs/table6-cpu --out report": Runs(r"The report is report/report\.html", "report"),
    "relora-lab report runs/60M runs/130M --out report": Runs(r"The report is", "report/tables/sizes.csv"),
    "relora-lab report runs/table8 --out report": Runs(r"The report is", "report/tables/glue.csv"),
    "relora-lab report runs/demo --out report --with my": Runs(r"The report is", "report/figures/bought.csv"),
    # Who trains is tested in test_grid_survives.py, test_ray.py and test_slurm.py.
    "relora-lab grid table6 --on local --workers 8": Runs(r"36 cells", more="--dry-run"),
    "relora-lab grid table6 --on ray": Runs(r"36 cells", more="--dry-run"),
    "relora-lab grid table6 --on slurm --slurm partition=long --slurm time=10:00:00": Runs(
        r"36 cells", more="--dry-run"
    ),
}
EIGHT = "eight GPUs; test_several_processes.py has two processes on CPUs"
PARSED = {
    "make demo": "minutes",
    "make test": "this is a part of it",
    "make faults": "minutes",
    "make findings": "hours",
    "python -m experiments.findings": "reads the runs of hours",
    "python -m experiments.benchmarks.step --size 350M --vocabulary 32000 --ranks 64 128 256 --micro-batch 24"
    " --precision bf16-autocast --device cuda --only step memory": "a GPU",
    "python3 -m venv ~/ww": "writes to the home folder",
    "~/ww/bin/pip install weightwatcher torch": "the network",
    "torchrun --nproc-per-node 8 -m relora_lab train relora.toml --out runs/relora": EIGHT,
    "torchrun --nproc-per-node 8 -m relora_lab train runs/table2-1.3B/relora-seed0/config.toml"
    " --out runs/table2-1.3B/relora-seed0 --resume": EIGHT,
}
NOT_YET = {"python -m experiments.findings"}


# ---- what is there to type


def commands() -> Iterator[str]:
    """Those of every block of shell lines, without comments."""
    for page in PAGES.values():
        for block in re.findall(r"(?ms)^```sh\n(.*?)^```", page):
            for line in block.replace("\\\n", " ").splitlines():
                yield from filter(None, " ".join(shlex.split(line, comments=True)).split(" && "))


def named() -> set[str]:
    """Those that sentences name."""
    prose = "\n".join(re.sub(r"(?ms)^```.*?^```", "", page) for page in PAGES.values())
    code = [re.sub(r"\s+", " ", found) for found in re.findall(r"`([^`]+)`", prose)]
    return {found for found in code if re.match(r"(relora-lab|python -m experiments|torchrun|make) ?\S", found)}


COMMANDS = list(dict.fromkeys(commands()))


def test_every_command_is_run_or_parsed_here():
    assert len(COMMANDS) > 30
    told = RUNS.keys() | PARSED.keys()
    assert [command for command in COMMANDS if command not in told] == []
    assert told - set(COMMANDS) <= NOT_YET
    assert not RUNS.keys() & PARSED.keys()


# ---- they run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all that they name is there."""
    place = tmp_path_factory.mktemp("place")
    documented_folder.build(place)
    return place


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is where commands are typed. Figures are drawn once, not as PNG and PDF too."""
    monkeypatch.setattr(drawing, "SUFFIXES", ("svg",))
    monkeypatch.chdir(shutil.copytree(place, tmp_path / "here"))
    return tmp_path / "here"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command in RUNS])
def test_it_runs(here, monkeypatch, capsys, command):
    how = RUNS[command]
    for name, stub in how.stubs.items():
        monkeypatch.setattr(name, stub)
    monkeypatch.setattr(sys, "stdin", io.StringIO(how.answer))
    if how.makes:
        shutil.rmtree(here / how.makes, ignore_errors=True)
    words = [how.instead.get(word, word) for word in command.split()] + how.more.split()
    if words[0] == "relora-lab":
        code, out, err = run(capsys, *words[1:])
    else:
        code, (out, err) = module_main(words), capsys.readouterr()
    assert code in (0, None), out + err
    assert re.search(how.told, out + err), out + err
    assert not how.makes or (here / how.makes).exists()


def main_of(module: str) -> Callable[..., int | None]:
    """The function that `python -m` calls, of a module or of a package's __main__."""
    found = import_module(module)
    return found.main if hasattr(found, "main") else import_module(f"{module}.__main__").main


def module_main(words: Sequence[str]) -> int | None:
    """What `python -m MODULE ...` does, in this process."""
    main = main_of(words[2])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words[2:])
        return main(*[list(words[3:])][: len(inspect.signature(main).parameters)])


# ---- or are parsed


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Commands end when their arguments are accepted; those of relora-lab are noted."""
    taken: list[dict[str, Any]] = []

    def noted(command: Callable[..., int]) -> Callable[..., int]:
        @wraps(command)
        def take(**arguments: Any) -> int:
            taken.append({"command": command.__name__, **arguments})
            return 0

        return take

    for table in ("COMMANDS", "RUNS_COMMANDS"):
        monkeypatch.setattr(cli, table, {name: noted(command) for name, command in getattr(cli, table).items()})
    parse = argparse.ArgumentParser.parse_args

    def parsed(*arguments: Any, **options: Any) -> None:
        parse(*arguments, **options)
        sys.exit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    return taken


def accept(words: Sequence[str], taken: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """What is typed so is accepted, and what it names is there."""
    match words:
        case ["make", *target]:
            assert subprocess.run(["make", "--dry-run", *target], cwd=ROOT, capture_output=True).returncode == 0
        case ["relora-lab", *arguments]:
            code, _, err = run(capsys, *arguments)
            assert code == 0, err
            if taken[-1]["command"] == "grid":
                assert grid.cells(grid.read(taken[-1]["declared"]), profile=taken[-1]["profile"])
        case ["torchrun", *arguments]:
            from torch.distributed.run import get_args_parser

            given, _ = get_args_parser().parse_known_args(arguments)
            assert (given.module, given.training_script) == (True, "relora_lab")
            accept(["relora-lab", *given.training_script_args], taken, capsys)
            for name, profile, cell in re.findall(r"runs/(\w+)-([\w.]+)/([\w-]+)/config.toml", " ".join(arguments)):
                assert cell in grid.cells(grid.read(Path(name)), profile=profile)
        case ["python" | "python3", "-m", module, *arguments]:
            assert callable(main_of(module))
            if arguments:
                with pytest.raises(SystemExit) as stop:
                    module_main(words)
                assert stop.value.code == 0, capsys.readouterr().err
        case [pip, "install", *packages] if pip.endswith("pip"):
            assert all(map(Requirement, packages))
        case _:
            pytest.fail(f"{' '.join(words)}: is no command that is known here")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command in PARSED])
def test_it_is_accepted(only_parse, capsys, command):
    accept(command.split(), only_parse, capsys)


@pytest.mark.parametrize("command", sorted(named()))
def test_what_a_sentence_names_is_accepted(only_parse, capsys, command):
    accept(shlex.split(command), only_parse, capsys)


def test_the_grids_and_extras_that_sentences_name_are_there():
    text = "\n".join(PAGES.values())
    for name, profile in re.findall(r"`(?:relora-lab grid )?([\w-]+) --profile (\w+)", text):
        assert grid.cells(grid.read(Path(name)), profile=profile)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = re.findall(r"pip install '(?:relora-lab|\.)\[(\w+)\]'", text)
    assert len(asked) >= 3
    assert set(asked) <= extras.keys()
