"""Names and text that somebody else chose: shown everywhere as they are, obeyed by nothing."""

import base64
import csv
import gzip
import itertools
import json
import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from conftest import changed, run, tiny_tables
from markdown_it import MarkdownIt
from safetensors.torch import save_file

from analysis import report
from analysis.report import drawing
from relora_lab import config
from relora_lab.errors import BadInput, printable, why
from relora_lab.launch.display import Display
from relora_lab.runs import RunFolder

TEXTS = [
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    '" onload="alert(1)',
    "{{ 7 * 7 }}",
    "=cmd()",
    "+1",
    "-1+1",
    "@SUM(1)",
    "\t=1",
    "a\r=1",
    " =1",
    "＝1",
    "a | `b` [x](javascript:y) ![z](q)\n# c",
    r"\input{/etc/passwd} $x$ % # _ & ~ ^ {",
    r"$\frac$",
    r"\end{document}",
    "[*] --- 1.",
    "\x1b[31mred\x1b]0;title\x07\x9b2J",
    "nul\0nul",
    "\u202egnp.exe",
    "long" * 2500,
]
NAMES = [text for text in TEXTS if not set("/\0") & set(text) and len(text) < 200]  # that a folder can have
BASE = '[base]\nmodel.size = "demo"\ntraining.steps = 9\noptimizer.lr = 1e-3\n'  # of a grid
SIGNS = re.compile(r"[^\n -~\u00a1-\U0010ffff]|[\u200b-\u200f\u2028-\u202e]")  # that a terminal or a reader obeys


def as_lines(shown):
    """The lines of what a command printed, which hold no sign of control."""
    assert not SIGNS.search(shown), SIGNS.search(shown)
    return shown.splitlines()


def make_run(folder, text, seed=0):
    """A run that has ended, with a text wherever a run folder has some."""
    made = RunFolder(folder)
    made.make()
    made.write_config(changed(tiny_tables(), data={"corpus": text}, training={"seed": seed}))
    made.write_environment({"corpus": {"text_sha256": "a1b2" * 16}, "device": text, "git_commit": text})
    made.write_status("finished", step=60, steps=60, reason=text)
    lines = [{"step": step, "loss": 3.0 + seed, "perplexity": 20.0, "tokens": 512} for step in (25, 50, 60)]
    (folder / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run a text, called so if a folder can be."""
    folder = tmp_path_factory.mktemp("runs")
    for number, text in enumerate(TEXTS):
        make_run(folder / (text if text in NAMES else f"run{number}"), text, number)
    return folder


# ---- the report, of such runs, with such a table of one's own


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    """The report."""
    own = tmp_path_factory.mktemp("own")
    (own / "mine.py").write_text(
        f"""{" ".join(TEXTS[:2])!r}
from pathlib import PurePath
import pandas as pd
TEXTS = {TEXTS!r}
NOTE = {" ".join(["A paragraph", *TEXTS])!r}.replace(" ", "\\n   ", 1)
def table(runs):
    return pd.DataFrame({{"text": TEXTS, "path": [PurePath(text) for text in TEXTS], **dict.fromkeys(TEXTS, "x")}})
"""
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "SUFFIXES", ("svg",))
        return report.build(runs, tmp_path_factory.mktemp("out") / "report", own=own)


class Elements(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)


def test_a_browser_finds_text(page):
    shown = Elements(page.read_text())
    ours = Elements(report.page.render("", [], []))
    assert [found for found in shown.found if found[0] == "script"] == [f for f in ours.found if f[0] == "script"]
    assert "img" not in {tag for tag, _ in shown.found}
    assert not [name for _, attributes in shown.found for name in attributes if name.startswith("on")]
    links = [value for _, about in shown.found for name, value in about.items() if name.rpartition(":")[2] == "href"]
    assert {link for link in links if not re.fullmatch(r"#[\w-]+|(tables|figures)/\w+\.csv", link)} == set()
    assert {printable(text) for text in TEXTS} <= set(shown.texts)
    assert not SIGNS.search(page.read_text())


def test_the_numbers_in_the_page_are_the_files(page):
    island = re.search('<script type="application/json" id="numbers">(.*?)</script>', page.read_text())[1]
    packed = json.loads(island)
    files = {path.relative_to(page.parent).as_posix(): path.read_bytes() for path in page.parent.rglob("*.csv")}
    assert {name: gzip.decompress(base64.b64decode(text)) for name, text in packed.items()} == files


def test_a_spreadsheet_finds_no_formula(page):
    found = set()
    for path in page.parent.rglob("*.csv"):
        text = path.read_text()
        assert not SIGNS.search(text)
        first, *rows = csv.reader(text.splitlines())
        assert {len(row) for row in rows} == {len(first)}
        found |= {*first, *(cell for row in rows for cell in row)}
    formulas = {cell for cell in found if re.match(r"\s*[=+@＝＋－＠-]", cell)}
    assert not {cell for cell in formulas if not re.fullmatch(r"-[0-9.]+(e[+-][0-9]+)?", cell)}
    assert {"'=cmd()", "'-1+1", "' =1", r"a\r=1", r"\t=1"} <= found


def test_markdown_finds_text(page):
    text = page.with_name("report.md").read_text()
    assert not SIGNS.search(text)
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(text)
    inside = [part for token in tokens for part in [token, *(token.children or ())]]
    kinds = {part.type for part in inside}
    assert not kinds & {"html_block", "html_inline", "code_inline", "code_block", "fence", "em_open"}
    links = {part.attrs.get("href", part.attrs.get("src")) for part in inside if part.type in ("link_open", "image")}
    assert {link for link in links if not re.fullmatch(r"(tables|figures)/\w+\.(csv|png)", link)} == set()
    cells = [
        "".join(part.content for part in content.children)
        for opening, content in itertools.pairwise(tokens)
        if opening.type in ("td_open", "th_open")
    ]
    assert {printable(text).strip() for text in TEXTS} <= set(cells)
    assert "\nA paragraph " in text


def test_latex_finds_text(page):
    text = page.with_name("report.tex").read_text()
    assert text.isascii()
    assert not SIGNS.search(text)
    assert text.count(r"\end{document}") == 1
    assert not set(re.findall(r"\\([a-z]+)", text)) & {"input", "frac", "x"}
    for table in page.parent.glob("tables/*.tex"):
        rest = re.sub(r"\\[\\&%$#_{}]", "", table.read_text())
        assert not re.search(r"[#%_~]", re.sub(r"\$[^$]*\$", "", rest))
        rows = [line for line in rest.splitlines() if "&" in line]
        assert len({row.count("&") for row in rows}) <= 1
        assert "long" * 100 not in rest  # a cell of meters is an error of TeX's


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex here")
def test_latex_compiles(page, tmp_path):
    where = shutil.copytree(page.parent, tmp_path / "report")
    text = (where / "report.tex").read_text()
    (where / "report.tex").write_text(re.sub(r"\\includegraphics\[.*?\]\{.*?\}", "", text))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    with (tmp_path / "said").open("wb") as said:
        done = subprocess.run(command, cwd=where, stdout=said, stderr=said, timeout=120, check=False)
    assert done.returncode == 0, (tmp_path / "said").read_text(errors="replace")[-2000:]


# ---- the terminal


@pytest.mark.parametrize("command", [["runs"], ["status", "--all"]])
def test_a_list_of_runs_has_a_line_a_run(runs, capsys, command):
    code, out, err = run(capsys, *command, runs)
    assert (code, err) == (0, "")
    lines = as_lines(out)
    assert len([line for line in lines if "finished" in line]) - (command[0] == "status") == len(TEXTS)
    for name in NAMES:
        assert [line for line in lines if line.startswith(printable(name))]


def test_what_two_runs_differ_in_is_told_in_lines(runs, capsys):
    first, second = (runs / name for name in NAMES[-2:])
    code, out, err = run(capsys, "runs", "diff", first, second)
    assert (code, err) == (0, "")
    assert len([line for line in as_lines(out) if line.startswith("data.corpus")]) == 1


def test_commands_name_a_folder_in_one_line(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(drawing, "SUFFIXES", ("svg",))
    folder = tmp_path / "a\nb\x1b[31m\r\u202ec"
    folder.mkdir()
    grid = folder / "grid.toml"
    shutil.copytree(runs / NAMES[0], folder / "runs" / "one")
    grid.write_text(f'{BASE}[rows.full]\nmethod.name = "full"\n')
    for command in (
        ["grid", grid, "--dry-run", "--out", folder],
        ["report", folder / "runs" / "one", "--out", folder / "report"],
        ["runs", "clean", folder / "runs"],
        ["train", folder / "nothing"],
        ["runs", folder / "nothing"],
        ["report", folder],
        ["spectrum", folder],
        ["status", folder],
    ):
        _, out, err = run(capsys, *command)
        lines = as_lines(out + err)
        assert [line for line in lines if printable(folder.name) in line], command


@pytest.mark.parametrize(
    "command", [["runs"], ["status"], ["report"], ["spectrum"], ["grid", "demo", "--dry-run", "--out"]]
)
def test_a_path_that_is_too_long_is_named_in_a_line(capsys, command):
    code, out, err = run(capsys, *command, "long" * 2500)
    assert (code, out) == (2, "")
    [line] = as_lines(err)
    assert line.startswith("relora-lab: ")
    assert "longlong" in line
    assert len(line) < 600


def test_why_a_run_failed_is_a_line():
    for text in TEXTS:
        assert len(as_lines(why(RuntimeError(text)))) == 1


def test_the_title_of_a_grid_is_no_markup(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    with Display("[/red]\x07", {}, []):
        pass
    shown = capsys.readouterr().err
    assert "[/red]" in shown
    assert "\x07" not in shown


FILES = ["=cmd()", "<script>alert(1)<", "a\nb\x1b[31m\x9b\r\u202ec"]
ROLES = ["=cmd()", "@SUM(1)", "<img>", "$x_{$", "|`"]


@pytest.fixture
def models(tmp_path):
    """Models in files of such names, with matrices of such roles."""
    paths = [tmp_path / f"{name}.safetensors" for name in FILES]
    for number, path in enumerate(paths):
        made = {f"model.layers.0.{role}.weight": torch.eye(4) * (number + 1) for role in ROLES}
        save_file(made, tmp_path / "made")
        (tmp_path / "made").rename(path)
    return paths


def test_a_look_at_models_obeys_no_name(models, tmp_path, capsys):
    code, out, err = run(capsys, "spectrum", *models, "--out", tmp_path / "out")
    assert code == 0
    lines = as_lines(out + err)
    assert {line.split()[0] for line in lines if line.split()} >= set(ROLES)
    for path in tmp_path.glob("out/*.csv"):
        rows = list(csv.reader(path.read_text().splitlines()))
        assert {len(row) for row in rows} == {len(rows[0])}
        assert not [cell for row in rows for cell in row if re.match(r"[=+@]", cell)]
    assert len(list(tmp_path.glob("out/*.png"))) == 3


def test_json_has_names_as_they_are(models, capsys):
    code, out, _ = run(capsys, "spectrum", *models, "--json")
    assert code == 0
    as_lines(out)
    found = json.loads(out)
    assert found["start"] == str(models[0])
    assert [final["final"] for final in found["finals"]] == [str(path) for path in models[1:]]
    assert {matrix["role"] for matrix in found["finals"][0]["matrices"]} == set(ROLES)


def test_a_file_whose_name_is_no_utf_8_is_refused(models, tmp_path, capsys):
    other = models[0].rename(tmp_path / "\udcff.safetensors")
    code, out, err = run(capsys, "spectrum", models[1], other)
    assert (code, out) == (2, "")
    [line] = as_lines(err)
    assert line.endswith("?.safetensors: the path is not UTF-8; rename it")


# ---- names of runs


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "-rf", "", "a" * 10_000, "a\nb", "nul\0", "é", ".x", "a" * 81])
def test_what_is_no_name_of_a_run_is_refused(tmp_path, capsys, name):
    quoted = json.dumps(name)
    settings = tmp_path / "run.toml"
    settings.write_text(config.dumps(changed(tiny_tables())))
    grid = tmp_path / "grid.toml"
    grid.write_text(f'{BASE}[rows.{quoted}]\nmethod.name = "full"\n')
    commands = {
        ": name: ": ["train", settings, "--out", tmp_path / "out", "--set", f"name={quoted}"],
        f": rows.{printable(name)[:50]}": ["grid", grid, "--out", tmp_path / "out"],
    }
    if "/" not in name:  # which is a path
        commands[": --out: "] = ["train", settings, f"--out={tmp_path}/{name}" if name else "--out="]
    for where, command in commands.items():
        code, out, err = run(capsys, *command)
        assert (code, out) == (2, "")
        [line] = as_lines(err)
        assert where in line
        assert "letters, digits, . _ - (1 to 80), not starting with . or -" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grid.toml", "run.toml"]


# ---- what others are told: SLURM, TensorBoard


def test_a_script_for_slurm_holds_a_name_and_no_command(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    from relora_lab.launch.slurm import Queue

    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text("")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(srun.parent), prepend=":")
    out = tmp_path / "'; $(touch here) `touch here` #"
    script = Queue(out, 1, {})._executor._make_submission_file_text("true", "1")
    [job] = [shlex.split(line)[1:] for line in script.splitlines() if "--job-name" in line]
    assert job == [f"--job-name={out.name}"]
    with pytest.raises(BadInput, match=r"--out .*a\\ntouch here: SLURM needs a path of printable signs"):
        Queue(tmp_path / "a\ntouch here", 1, {})


def test_tensorboard_gets_text(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    from relora_lab.track import Tracker

    for text in TEXTS:
        make_run(tmp_path / "run", text)
        Tracker("tensorboard", [RunFolder(tmp_path / "run")]).close()
        [events] = tmp_path.glob(".tensorboard/run/*")
        assert text.encode() in events.read_bytes()
    assert capsys.readouterr().err == ""
