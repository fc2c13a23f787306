"""docs/adding_a_method.md: its example is a file that works where it says."""

import re

import pytest
import torch
from conftest import ROOT, changed, tiny_tables
from torch import nn

from relora_lab import methods, train
from relora_lab.errors import BadInput
from relora_lab.runs import RunFolder

TEXT = (ROOT / "docs" / "adding_a_method.md").read_text()
EXAMPLE = {"name": "remilora", "rank": 2, "restart_every": 14, "restart_warmup": 3, "optimizer_reset": "zero"}


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The example, as a file among the methods."""
    path, code = re.search(r"```python (\S+)\n(.*?)```", TEXT, re.DOTALL).groups()
    folder, _, name = path.rpartition("/")
    assert (ROOT / folder).samefile(methods.__path__[0])
    (tmp_path / name).write_text(code)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    return code


def test_the_example_is_short_and_becomes_a_method(added, tmp_path):
    assert len([line for line in added.splitlines() if line]) <= 30
    assert "remilora" in methods.available()
    config = changed(tiny_tables(), method=EXAMPLE | {"skip": 1})
    folder = RunFolder(train.run(config, tmp_path / "run"))
    assert folder.state == "finished"
    assert folder.status["identity_deviation"] < 1e-5
    *restarts, _ = folder.cycle_facts()
    assert len(restarts) == 2
    assert all(abs(facts["function_jump"]) <= 1e-5 for facts in restarts)


@pytest.mark.usefixtures("added")
def test_the_example_does_what_its_docstring_says():
    W = torch.randn(20, 12, generator=torch.Generator().manual_seed(0))
    base = nn.Linear(12, 20)
    base.weight.data.copy_(W)
    layer = methods.layer("remilora", base, 3, skip=2)
    sigma = torch.linalg.svdvals(W)
    torch.testing.assert_close(torch.linalg.svdvals(layer.update())[:3], sigma[-5:-2], atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.merged_weight(), W, atol=1e-5, rtol=0)


@pytest.mark.usefixtures("added")
def test_its_fields_are_checked_like_any_others():
    with pytest.raises(BadInput, match="unknown field 'skipp' in \\[method\\]; did you mean 'skip'"):
        changed(tiny_tables(), method=EXAMPLE | {"skipp": 1})


def test_the_hooks_that_are_listed_exist():
    options = methods.options_class("relora")
    for names in re.findall(r"^\| (`.*?`) \|", TEXT, re.MULTILINE):
        for name in re.findall(r"`(\w+)", names):
            assert hasattr(options, name), name
