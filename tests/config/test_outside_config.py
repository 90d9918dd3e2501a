"""What users bring from outside the project: option files, classes, whole groups."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sae_sweeps.config.groups import GROUPS
from tests.support.commands import Trainer, configs, python, run, trainer, write

__all__ = ["run", "trainer"]  # fixtures

ALLOCATOR = '''
"""A user's allocator; importing it would fail, and nothing needs to."""
import sae_sweeps.interfaces as kinds
raise RuntimeError("imported")


class Mine(kinds.Allocator):
    def __init__(
        self,
        d_sae: int,
        *,
        k: Annotated[float, Gt(0), AtMost("d_sae")],
        exponent: Annotated[float, Ge(0)],
        shift: float,
        kind: str,
        p: float,
    ) -> None:
        ...

    @staticmethod
    def rules(config: Mapping[str, Any]) -> Iterator[str]:
        from sae_sweeps.allocator.slots import zipf_fills_a_slot

        yield from zipf_fills_a_slot(config)
        node = config["allocator"]
        if node["kind"] == "twin" and config["d_sae"] % 2:
            yield f"allocator.kind is 'twin': d_sae is {config['d_sae']}, expected an even number."
        if node["kind"] == "broken":
            raise ZeroDivisionError
'''

# Options that classes of ours have rules for, each with a value that these would refuse.
OTHERS = {
    "architecture": {"fractions": "[2.0, 3.0]"},
    "allocator": {"k": "1e-9", "exponent": "9.0", "shift": "0.0"},
    "resampling": {"every_tokens": "1000000000", "times": "9", "encoder_share": "0.2"},
    "schedule": {"warmup_tokens": "1000000000", "decay_tokens": "1000000000"},
    "target_model": {"model": "nowhere/at/all", "hook": "blocks.99.hook_mlp_ou", "path": "x.csv"},
    "data": {"path": "nowhere", "sample_by": "page", "context_tokens": "1000", "train_tokens": "1"},
}


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """Make a folder of config files, and a module beside the command."""
    write(tmp_path / "my_allocator_module.py", ALLOCATOR)
    write(
        tmp_path / "mine/allocator/mine.yaml",
        "_target_: my_allocator_module.Mine\nk: ${k}\nexponent: 0.5\nshift: 10\nkind: plain\n"
        "p: 2\n",
    )
    return tmp_path / "mine"


def test_an_allocator_from_outside(run: Callable[..., int], trainer: Trainer, mine: Path) -> None:
    assert run("--config-dir", mine.name, "allocator=mine,token_choice", "k=8") == 0
    ours, theirs = trainer.runs
    assert ours.label == "mine + aux_k"
    assert ours.config.tree["allocator"] == {
        "_target_": "my_allocator_module.Mine",
        "k": 8.0,
        "exponent": 0.5,
        "shift": 10.0,
        "kind": "plain",
        "p": 2.0,  # whatever bounds another class has for its own p
    }
    assert theirs.label == "token_choice + aux_k"


@pytest.mark.slow
def test_it_is_checked_and_ruled_like_a_shipped_one(
    run: Callable[..., int], mine: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("--config-dir", str(mine), "allocator=mine", "d_sae=1025")
    mistakes = {
        "allocator.kind is 3, expected str": "allocator.kind=3",
        "allocator.kin is not an option": "allocator.kin=x",
        "the rarest latent would get": "allocator.exponent=3",
        "allocator.kind is 'twin': d_sae is 1025, expected an even number.": "allocator.kind=twin",
        "allocator.exponent is -1, expected at least 0.": "allocator.exponent=-1",
        "allocator.k is 3000, expected at most d_sae": "allocator.k=3000",
    }
    for expected, word in mistakes.items():
        assert run(*words, word) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert expected in line
    assert not (tmp_path / "outputs").exists()


def test_its_rules_are_asked_without_torch(mine: Path, tmp_path: Path) -> None:
    code = """
import sys
from sae_sweeps.__main__ import main
try:
    main()
finally:
    print("torch" in sys.modules)
"""
    words = ("--config-dir", mine.name, "allocator=mine", "allocator.kind=twin", "d_sae=1025")
    ended = python(code, tmp_path, words)
    line = "sae-sweeps: allocator.kind is 'twin': d_sae is 1025, expected an even number.\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "False\n", line)
    assert not (tmp_path / "outputs").exists()


def test_a_fault_in_its_rules_is_no_users_mistake(run: Callable[..., int], mine: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run("--config-dir", mine.name, "allocator=mine", "allocator.kind=broken")


def test_rules_are_for_their_own_class(
    run: Callable[..., int], trainer: Trainer, tmp_path: Path
) -> None:
    """What an option of somebody else's class means, that class says, whatever its name."""
    module = "raise RuntimeError('imported')\n"
    kinds = {group.name: group.base for group in GROUPS}
    for group, given in OTHERS.items():
        options = "".join(f", {name}: Any" for name in given)
        module += f"import {kinds[group].rpartition('.')[0]}\nclass {group.title()}"
        module += f"({kinds[group]}):\n    def __init__(self, *{options}) -> None: ...\n"
        node = {"_target_": f"my_other_module.{group.title()}"} | given
        text = "".join(f"{key}: {value}\n" for key, value in node.items())
        write(tmp_path / f"mine/{group}/other.yaml", text)
    write(tmp_path / "my_other_module.py", module)
    words = [f"{group}=other" for group in OTHERS]
    assert run("--config-dir", "mine", *words) == 0
    [only] = trainer.runs
    assert only.config.nodes["architecture"]["fractions"] == [2.0, 3.0]


def test_it_is_found_by_the_console_script(mine: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.path[:] = [path for path in sys.path if path]  # a console script has no '' on its path
from sae_sweeps.__main__ import main
sys.argv = ["sae-sweeps", "--config-dir", "mine", "allocator=mine", "allocator.kind=3"]
main()
"""
    ended = python(code, tmp_path)
    assert ended.stderr.startswith("sae-sweeps: allocator.kind is 3, expected str"), ended.stderr
    assert mine.is_dir()


def test_a_search_path_in_place_of_a_config_dir(
    run: Callable[..., int], trainer: Trainer, mine: Path
) -> None:
    assert run(f"hydra.searchpath=[file://{mine}]", "allocator=mine") == 0
    assert trainer.runs[0].choices["allocator"] == "mine"


def test_a_wholly_new_group_reaches_the_run_and_its_identity(
    run: Callable[..., int], trainer: Trainer, tmp_path: Path
) -> None:
    write(tmp_path / "mine/pace/short.yaml", "steps: 3\nlr: 1e-4\n")
    write(tmp_path / "mine/pace/long.yaml", "steps: 4\nlr: 1e-4\n")
    words = ("--config-dir", "mine", "+pace=short,long", "optimizer.lr=${pace.lr}")
    assert run("-m", *words) == 0
    short, long = configs(trainer)
    assert short["pace"] == {"steps": 3, "lr": 1e-4} and long["pace"]["steps"] == 4
    assert short["optimizer"]["lr"] == 1e-4
    assert len({r.name for r in trainer.runs}) == 2


def test_a_file_that_holds_an_option_where_it_was_is_told_where_it_is(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On command lines it is taken for the present one; in a file it might hide a typed one."""
    write(tmp_path / "mine/sweep/old.yaml", "# @package _global_\ntraining:\n  lr: 1e-3\n")
    assert run("--config-dir", "mine", "+sweep=old") == 1
    assert capsys.readouterr().err == "sae-sweeps: training.lr is optimizer.lr now.\n"


def test_a_new_group_with_a_class_is_checked(
    run: Callable[..., int], mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(mine / "probe/one.yaml", "_target_: my_allocator_module.Mine\nk: x\n")
    assert run("--config-dir", "mine", "+probe=one") == 1
    assert "probe.exponent is missing" in capsys.readouterr().err


def test_a_global_group_just_works(
    run: Callable[..., int], trainer: Trainer, tmp_path: Path
) -> None:
    text = "# @package _global_\ndefaults:\n  - override /allocator: mutual_choice\nk: 9\n"
    write(tmp_path / "mine/preset/wide.yaml", text)
    assert run("--config-dir", "mine", "+preset=wide") == 0
    [only] = trainer.runs
    assert only.config.tree["k"] == 9.0 and only.choices["allocator"] == "mutual_choice"
    assert "preset" not in only.config.tree


def test_a_method_and_a_sweep_from_outside(
    run: Callable[..., int], trainer: Trainer, mine: Path
) -> None:
    write(
        mine / "method/mine.yaml",
        "# @package _global_\ndefaults:\n  - override /allocator: mine\n"
        "  - override /aux_loss: none\n",
    )
    write(
        mine / "sweep/mine.yaml",
        "# @package _global_\nname: study\nhydra: {sweeper: {params: {method: 'mine,topk'}}}\n",
    )
    assert run("--config-dir", "mine", "+sweep=mine", "seed=0,1") == 0
    assert {r.sweep for r in trainer.runs} == {"study"}
    labels = [r.label for r in trainer.runs]
    assert labels == ["mine", "mine", "token_choice + aux_k", "token_choice + aux_k"]
