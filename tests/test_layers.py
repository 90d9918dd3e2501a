"""Which module may import which: a module imports only from rows above its own."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float, TypeCheckError
from torch import nn

from sae_sweeps.optimizer.adam import Adam
from tests.support.places import ROOT
from tests.support.unchecked import unchecked

PACKAGE = ROOT / "sae_sweeps"

ROWS = [
    {"errors", "marks", "measures", "engine", "embedded"},
    {"system", "interfaces", "config"},
    {"architecture", "allocator", "aux_loss", "resampling", "fine_tune", "target_model", "measure"},
    {"optimizer", "schedule"},
    {"data"},
    {"record"},
    {"stream", "tracking"},
    {"training"},
    {"planning"},
    {"pareto"},
    {"launching"},
    {"cli"},
    {"__main__"},
]
ROW = {name: number for number, names in enumerate(ROWS) for name in names}


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, by their first name below it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("sae_sweeps.")}


def test_modules_import_only_from_rows_above() -> None:
    checked, found = 0, list[str]()
    for path in sorted(PACKAGE.rglob("*.py")):
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        above = {name for names in ROWS[: ROW[here]] for name in names}
        illegal = imported(path) - above - {here}
        found += [f"{path.relative_to(PACKAGE)} imports {name}" for name in sorted(illegal)]
        checked += 1
    assert found == []
    assert checked > 40


def test_wandb_is_imported_in_one_place() -> None:
    imports = re.compile(r"^\s*(import|from) wandb\b|import_module\(.wandb\b", re.MULTILINE)
    importing = {
        p.relative_to(PACKAGE).parent.as_posix()
        for p in PACKAGE.rglob("*.py")
        if imports.search(p.read_text())
    }
    assert importing == {"tracking/wandb"}


def test_calls_are_checked_where_shapes_are_told() -> None:
    """All tests rely on it, see `pytest_configure` in tests/conftest.py."""
    [parameter] = parameters = [nn.Parameter(torch.zeros(3, 2))]
    adam = Adam(parameters, [1.0], lr=1e-3, beta1=0.9, beta2=0.999)
    adam.forget(parameter, 0, torch.tensor([1]))
    with pytest.raises(TypeCheckError):
        adam.forget(parameter, 0, torch.tensor([[1]]))


def test_a_value_is_checked_though_such_arguments_were_good_before() -> None:
    lengths = iter([3, 2, 2, 3])

    @jaxtyping.jaxtyped(typechecker=beartype)
    def given(_: Float[torch.Tensor, " n"]) -> Float[torch.Tensor, " n"]:
        return torch.zeros(next(lengths))

    with unchecked():
        given(torch.zeros(2))  # which makes nothing good
    for _ in range(2):
        given(torch.zeros(2))
    with pytest.raises(TypeCheckError, match="return value"):
        given(torch.zeros(2))


def test_what_runs_before_training_does_not_load_torch() -> None:
    modules = [
        "config.rules",
        "allocator.slots",
        "target_model.judging",
        "data.judging",
        "record.naming",
        "launching.sweeper",
        "launching.local",
        "pareto.report",
    ]
    code = "import sys\n" + "".join(f"import sae_sweeps.{name}\n" for name in modules)
    code += "heavy = {'torch', 'wandb', 'matplotlib', 'transformer_lens', 'datasets'}\n"
    code += "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
