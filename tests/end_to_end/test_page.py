"""The report as a person has it: in a browser, as LaTeX, with tables and figures of one's own, of several sizes."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, changed, run, tiny_tables

from analysis import load_runs, modules, report, tables
from analysis.report import drawing, sections
from relora_lab import manifest, train
from relora_lab.errors import BadInput

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
EVIL = "=cmd()|<script>window.hacked=1&\\end{document}$%#_~^`*é😀"
CHINESE = "[中] *x*"
# Labels, and the held-out loss of their first seed.
LABELS = {"full": 3.0, "relora": 3.5, "lora-warm": 3.75, CHINESE: 4.0, EVIL: 3.25}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two short runs, copied under five names and two seeds each; one has diverged."""
    made, out = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("runs")
    train.run(changed(tiny_tables(), training={"seed": 0}), made / "relora")
    full = {"method": {"name": "full"}, "training": {"warm_start": 0, "reference_step": 20}}
    train.run(changed(tiny_tables(), **full), made / "full")
    for number, (label, loss) in enumerate(LABELS.items()):
        for seed in (0, 1):
            path = shutil.copytree(made / ("full" if label == "full" else "relora"), out / f"s{seed}" / label)
            edit_settings(path, seed=seed, clip=1.0 + number)
            lines = [json.loads(line) for line in (path / "eval.jsonl").read_text().splitlines()]
            for line in lines:
                line["loss"] = loss + 0.01 * seed
            (path / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            manifest.record(path, "eval.jsonl")
    status = out / "s1" / "lora-warm" / "status.json"
    status.write_text(json.dumps({**json.loads(status.read_text()), "state": "diverged", "reason": "the loss rose"}))
    return out


def edit_settings(path, *, seed=None, clip=None, size=None, steps=None):
    """Change settings of a run that has ended."""
    settings = path / "config.toml"
    text = re.sub(r'(?m)^name = "relora-.*\n', "", settings.read_text())
    for name, value in {"seed": seed, "clip": clip, "steps": steps, "size": size and f'"{size}"'}.items():
        if value is not None:
            text, found = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value}", text)
            assert found == 1
    settings.write_text(text)


@pytest.fixture(scope="module")
def runs(folder):
    return load_runs([folder / "s0", folder / "s1"])


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    return report.build(runs, tmp_path_factory.mktemp("out") / "report")


@pytest.fixture
def browse(page):
    """A browser tab of the page at a width; what it complains of, and asks for, is kept."""
    if BROWSER is None:
        pytest.skip("no Chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])

        def opened(width=1280, theme="light", path=page):
            tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
            tab.complaints, tab.asked = [], []
            tab.on("console", lambda message: tab.complaints.append(message.text))
            tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
            tab.on("request", lambda request: tab.asked.append(request.url))
            tab.goto(path.as_uri())
            return tab

        yield opened
        browser.close()


def column(tab, part, name):
    """The texts of a table's column."""
    heads = [head.strip() for head in tab.locator(f"#{part} > .wide thead th").all_inner_texts()]
    place = next(n for n, head in enumerate(heads) if head.split(" ▲")[0].split(" ▼")[0] == name)
    return tab.locator(f"#{part} > .wide tbody tr td:nth-child({place + 1})").all_inner_texts()


@pytest.mark.slow
def test_a_browser_opens_the_page_fetches_nothing_and_complains_of_nothing(browse, page, runs):
    tab = browse()
    tab.wait_for_load_state("networkidle")
    assert tab.complaints == []
    assert tab.asked == [page.as_uri()]
    assert tab.evaluate("window.hacked") is None
    ids = tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    drawn = tab.locator("svg[role=img]")
    assert drawn.count() == len(list(page.parent.glob("figures/*.svg"))) >= 10
    for figure in drawn.all():
        assert len(figure.get_attribute("aria-label")) > 40
        assert figure.bounding_box()["width"] > 200
    broken = """[...document.querySelectorAll("svg use")]
        .filter(e => !document.getElementById(e.href.baseVal.slice(1))).length"""
    assert tab.evaluate(broken) == 0
    assert set(column(tab, "tables-perplexity", "label")) == set(map(str, runs["label"].cat.categories))


@pytest.mark.slow
def test_tables_sort_both_ways_with_what_is_missing_last(browse):
    tab = browse()
    head = tab.locator("#tables-ablation > .wide thead button", has_text=re.compile("^difference$"))
    head.click()
    rising = column(tab, "tables-ablation", "difference")
    assert head.locator("..").get_attribute("aria-sort") == "ascending"
    head.click()
    falling = column(tab, "tables-ablation", "difference")
    assert head.locator("..").get_attribute("aria-sort") == "descending"
    numbers = [float(cell.split()[0].replace("−", "-")) for cell in rising[:-1]]
    assert numbers == sorted(numbers)
    assert min(numbers) < 0 < max(numbers)
    assert falling[:-1] == rising[:-1][::-1]
    assert rising[-1] == falling[-1] == "–"
    tab.locator("#tables-ablation > .wide thead button", has_text=re.compile("^warm start$")).click()
    ticks = column(tab, "tables-ablation", "warm start")
    assert ticks == ["✓"] * (len(LABELS) - 1) + [""]
    tab.locator("#tables-ablation > .wide thead button", has_text=re.compile("^label$")).press("Enter")
    names = column(tab, "tables-ablation", "label")
    assert names[2:] == ["full", "lora-warm", "relora"]  # behind names that begin with signs


@pytest.mark.slow
def test_the_theme_is_the_systems_until_one_is_chosen_and_is_remembered(browse):
    def shade(tab):
        return int(re.findall(r"\d+", tab.evaluate("getComputedStyle(document.body).backgroundColor"))[0])

    assert shade(browse(theme="light")) > 200
    tab = browse(theme="dark")
    assert shade(tab) < 60
    for expected in ("light", "dark", "as the system", "light"):
        tab.locator("#theme").click()
        assert tab.locator("#theme").inner_text() == f"Theme: {expected}"
    assert shade(tab) > 200
    tab.reload()
    assert shade(tab) > 200
    assert tab.complaints == []


@pytest.mark.slow
def test_a_phone_shows_it_all_and_the_numbers_can_be_saved_from_the_page_alone(browse, page, tmp_path):
    alone = shutil.copy(page, tmp_path)
    tab = browse(width=390, theme="dark", path=Path(alone))
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    for name in ("tables/perplexity.csv", "figures/loss.csv"):
        with tab.expect_download() as saved:
            tab.locator(f'a[href="{name}"]').click()
        assert saved.value.suggested_filename == Path(name).name
        assert Path(saved.value.path()).read_bytes() == (page.parent / name).read_bytes()
    assert tab.complaints == []


def test_names_are_text_in_every_form(page):
    html = page.read_text()
    assert html.count("<script") == 2  # the numbers and ours
    assert "window.hacked=1&amp;" in html
    assert f"'{EVIL}" in pd.read_csv(page.parent / "tables" / "perplexity.csv")["label"].tolist()
    markdown = page.with_name("report.md").read_text()
    assert "\\<script\\>" in markdown
    assert not re.search(r"(?<!\\)[<]", markdown)
    latex = page.with_name("report.tex").read_text()
    assert latex.isascii()
    assert latex.count(r"\end{document}") == 1
    assert set(re.findall(r"U\+\w+", latex)) == {"U+1F600", "U+4E2D"}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex here")
def test_latex_makes_a_document_of_it(page, tmp_path):
    where = shutil.copytree(page.parent, tmp_path / "report")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (where / "report.pdf").stat().st_size > 50_000


def test_every_runs_settings_and_environment_are_there(page, runs):
    about = pd.read_csv(page.parent / "tables" / "runs.csv")
    assert len(about) == len(runs)
    assert set(about["optimizer.clip"]) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert about["torch"].notna().all()
    assert {"python", "device", "threads", "corpus.text_sha256", "training.steps"} <= set(about)
    same = pd.read_csv(page.parent / "tables" / "in_common.csv").set_index("setting")["value"]
    differ = pd.read_csv(page.parent / "tables" / "settings.csv")
    assert same["training.steps"] == "60"
    settings = [name for name in runs if "." in name and runs[name].notna().any()]
    assert {name.replace("_", " ") for name in settings} <= {*differ, *(n.replace("_", " ") for n in same.index)}


def test_a_second_process_draws_the_same(runs, page, tmp_path, monkeypatch):
    monkeypatch.setattr(sections, "MANY", 1)
    again = report.build(runs, tmp_path / "report")
    for path in sorted(page.parent.rglob("*.*")):
        assert (again.parent / path.relative_to(page.parent)).read_bytes() == path.read_bytes(), path


def test_a_process_that_draws_and_dies_is_said_and_nothing_is_written(folder, tmp_path, monkeypatch, capsys):
    begin = drawing.Draughtsman.__enter__

    def dying(self):
        begin(self)
        self._process.kill()
        return self

    monkeypatch.setattr(sections, "MANY", 1)
    monkeypatch.setattr(drawing.Draughtsman, "__enter__", dying)
    code, _, err = run(capsys, "report", folder / "s0", "--out", tmp_path / "out")
    assert code == 1
    assert "the process that draws it has ended" in err
    assert not (tmp_path / "out").exists()


def test_a_report_in_the_place_of_another_leaves_nothing_of_it_and_nothing_else_is_touched(page, folder, tmp_path):
    where = shutil.copytree(page.parent, tmp_path / "report")
    (where / "figures" / "mine.png").write_bytes(b"mine")
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    shutil.copy(folder / "s0" / "full" / "config.toml", waiting)
    report.build(waiting, where)
    left = {path.name for path in where.rglob("*.*") if path.parent != where}
    assert left == {
        "mine.png",
        "settings.csv",
        "settings.tex",
        "runs.csv",
        "runs.tex",
        "in_common.csv",
        "in_common.tex",
    } | {
        f"{name}.{suffix}" for name in ("perplexity", "ablation", "models", "throughput") for suffix in ("csv", "tex")
    }


# ---- one's own tables and figures

FIRST = "ORDER, SIZE = -1, (1, 1)\ndef draw(frame, ax): pass\ndef describe(frame): pass\n"
EXAMPLES = dict(re.findall(r"```python (\w+)\n(.*?)```", (ROOT / "docs" / "report.md").read_text(), re.DOTALL))


def test_ones_own_tables_and_figures_stand_among_the_others(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(drawing, "SUFFIXES", ("svg",))
    own = tmp_path / "own"
    own.mkdir()
    (own / "_helper.py").write_text("THOUSAND = 1000\n")
    table = EXAMPLES["table"].replace("1000", "THOUSAND").replace("as pd\n", "as pd\nfrom ._helper import THOUSAND\n")
    (own / "price.py").write_text(table)
    (own / "by_trained.py").write_text(EXAMPLES["figure"])
    greedy = "def data(runs):\n    runs['loss'] = 99.0\n    return runs[['label', 'loss']]\n"
    (own / "greedy.py").write_text(greedy + "SIZE = (3, 2)\ndef draw(f, ax): pass\ndef describe(f): return 5\n")
    code, _, err = run(capsys, "report", folder / "s0", "--out", tmp_path / "out", "--with", own)
    assert (code, err) == (0, "")
    text = (tmp_path / "out" / "report.md").read_text()
    for words in (
        "## How much loss",
        "## Held-out loss by trained weights",
        "The lowest loss is",
        "figures/by_trained.png",
    ):
        assert words in text
    written = pd.read_csv(tmp_path / "out" / "tables" / "price.csv")
    runs = load_runs(folder / "s0")
    measured = pd.read_csv(tmp_path / "out" / "tables" / "perplexity.csv")
    assert sorted(measured["loss"]) == sorted(runs["loss"])  # whatever one of one's own does to its runs
    assert written["trained"].tolist() == [trained / 1000 for trained in runs["trained"]]
    assert len(pd.read_csv(tmp_path / "out" / "figures" / "by_trained.csv")) == len(runs)
    (own / "price.py").write_text('NOTE = "New."\ndef table(runs):\n    return runs\n')  # read anew
    assert [module.NOTE for module in modules.of_folder(own) if modules.is_table(module)] == ["New."]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("letters.py", FIRST + "def data(runs):\n    return runs.nothing\n", "letters.py: AttributeError"),
        ("broken.py", "def table(runs:\n", "SyntaxError"),
        ("neither.py", "x = 1\n", "neither.py is neither a table"),
        ("exits.py", "import sys\nsys.exit(0)\n", "SystemExit"),
        ("a b.py", "def table(runs):\n    return runs\n", "use letters, digits and _"),
        ("runs.py", "def table(runs):\n    return runs\n", "the report has a runs already"),
        ("half.py", "def data(runs):\n    return runs\nSIZE = (1, 1)\n", "lacks `draw`, `describe`"),
        ("perplexity.py", "def table(runs):\n    return runs\n", "the report has a perplexity already"),
        ("notes.txt", "", "has no Python files"),
    ],
)
def test_what_is_no_table_and_no_figure_is_named_and_nothing_is_written(folder, tmp_path, name, text, said):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / name).write_text(text)
    with pytest.raises(BadInput, match=re.escape(said)):
        report.build(folder / "s0", tmp_path / "out", own=tmp_path / "own")
    assert not (tmp_path / "out").exists()


# ---- several sizes


def test_runs_of_several_sizes_have_a_section_each_and_p1s_table_of_all(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "SUFFIXES", ("svg",))
    both = tmp_path / "runs"
    for label in ("full", "relora"):
        for size, steps in (("demo", 60), ("60M", 61)):
            path = shutil.copytree(folder / "s0" / label, both / f"{label}-{size}")
            edit_settings(path, size=size, steps=steps)
    page = report.build(both, tmp_path / "out")
    text = page.with_name("report.md").read_text()
    assert re.findall(r"(?m)^## (.*)$", text) == [
        "Perplexity by method and size (P1 Table 2)",
        "60M",
        "demo",
        "All runs",
    ]
    wide = pd.read_csv(page.parent / "tables" / "sizes.csv")
    assert {"demo", "60M", "P1 60M"} <= set(wide)
    assert set(wide["P1 60M"].dropna()) == {33.81, 34.46}
    assert {"demo-loss.csv", "60M-loss.csv"} <= {path.name for path in (page.parent / "figures").iterdir()}
    with pytest.raises(BadInput, match="rows are not comparable: tokens"):
        edit_settings(both / "full-60M", steps=62)
        report.build(both, tmp_path / "other")
    assert tables.load("sizes").table(load_runs(folder / "s0")).empty
