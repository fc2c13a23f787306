"""The house: who may import whom, read from the sources."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What analysis may import of relora_lab: the light leaves, none of which needs transformers.
LEAVES = {"runs", "workspace", "files", "config", "sizes", "schedule", "memory", "errors", "settings", "tensor_files"}
LEAVES |= {"model_files", "tasks"}


def imports(path: Path, *, inside_functions: bool = True) -> set[str]:
    """Dotted names a file imports."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if inside_functions else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{path}: relative imports hide who imports whom"
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


FILES = {folder: sorted((ROOT / folder).rglob("*.py")) for folder in ("relora_lab", "analysis", "experiments")}


@pytest.mark.parametrize("path", FILES["relora_lab"], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_trainer_knows_neither_analysis_nor_drawing(path):
    forbidden = {"analysis", "experiments", "pandas", "matplotlib"}
    found = tops(imports(path, inside_functions="commands" not in path.parts))
    assert not found & forbidden


@pytest.mark.parametrize("path", FILES["analysis"], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_analysis_knows_only_the_leaves_of_the_trainer_and_draws_only_in_figures(path):
    names = imports(path)
    assert {n.split(".")[1] for n in names if n.startswith("relora_lab.")} <= LEAVES
    assert not tops(names) & {"transformers", "datasets", "experiments"}
    if "figures" not in path.parts:
        assert "matplotlib" not in tops(names)


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_a_leaf_imports_no_heavy_library(leaf):
    check = f"import sys, relora_lab.{leaf}; print(*({{'transformers', 'datasets', 'pandas'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_sizes_schedule_and_memory_need_no_torch():
    check = "import sys, relora_lab.sizes, relora_lab.schedule, relora_lab.memory; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_nothing_can_unpickle():
    """No torch.load, no pickle: only safetensors and JSON are ever read."""
    for path in [file for files in FILES.values() for file in files]:
        text = path.read_text()
        assert "torch.load(" not in text
        assert not tops(imports(path)) & {"pickle", "shelve", "joblib", "dill"}
