"""Checking, normalising and identifying configs, without the command line around them."""

import ast
import builtins
import dis
import hashlib
import importlib
import inspect
import json
import math
import string
from pathlib import Path
from types import CodeType
from typing import Any, Literal, get_args, get_origin

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from sae_sweeps.allocator.slots import rarest_density
from sae_sweeps.cli.app import CONF
from sae_sweeps.config import fitting, groups, options, rules, signature
from sae_sweeps.config.check import check, checked
from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.source import definition, is_a, own_rules
from sae_sweeps.errors import ConfigError
from sae_sweeps.launching.sweeper import literal
from sae_sweeps.record.identity import identity, stream_identity
from sae_sweeps.record.naming import run_name
from sae_sweeps.record.run import label
from tests.support.commands import write

OPTION_FILES = sorted(
    path.relative_to(CONF).as_posix()
    for group in groups.NAMES
    for path in (CONF / group).glob("*.yaml")
)
NODE = {"_target_": "sae_sweeps.allocator.token_choice.TokenChoice"}


def composed(*overrides: str) -> DictConfig:
    """Compose the shipped config, Hydra's node included, as a launcher does."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


def config(*overrides: str) -> dict[str, Any]:
    return checked(composed(*overrides))


# --- Contract: files, classes and annotations agree -----------------------------------------


def test_all_option_files_are_found() -> None:
    assert len(OPTION_FILES) >= 18


def stated(path: Path) -> dict[str, Any]:
    """What an option file states, itself or through another of its group that it builds on."""
    node = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(node, dict)
    above: dict[str, Any] = {}
    for entry in node.pop("defaults", []):
        if isinstance(entry, str):
            above |= stated(path.parent / f"{entry}.yaml")
    assert not above or set(node) <= set(above)
    return above | {str(key): value for key, value in node.items()}


@pytest.mark.parametrize("name", OPTION_FILES)
def test_an_option_file_states_exactly_what_its_class_takes(name: str) -> None:
    node = stated(CONF / name)
    target = node.pop("_target_")
    module, _, cls = target.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), cls)).parameters
    keyword_only = {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert set(node) == set(keyword_only)
    assert all(p.default is p.empty for p in keyword_only.values()), "YAML states every default"
    assert set(signature.signature(target)) == set(keyword_only)


def test_rules_of_classes_know_no_names_of_their_modules() -> None:
    targets = {stated(CONF / name)["_target_"] for name in OPTION_FILES}
    found = {target: rules for target in targets if (rules := own_rules(target))}
    assert len(found) >= 9
    for target, own in found.items():
        assert looked_up(inspect.unwrap(own).__code__) <= set(dir(builtins)), target


def looked_up(code: CodeType) -> set[str]:
    """Names that a function, or one within it, looks for in its module."""
    own = {str(i.argval) for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"}
    return own.union(*(looked_up(part) for part in code.co_consts if isinstance(part, CodeType)))


@pytest.mark.parametrize(
    "name", ["StreamOptions", "TrainingOptions", "EvaluationOptions", "RootOptions"]
)
def test_sections_are_read_as_dataclasses(name: str) -> None:
    fields = inspect.signature(getattr(options, name)).parameters
    assert list(signature.signature(f"sae_sweeps.config.options.{name}")) == list(fields)


@pytest.mark.parametrize("method", sorted(path.stem for path in (CONF / "method").glob("*.yaml")))
def test_every_method_passes_the_rules(method: str) -> None:
    found = config(f"method={method}")
    rules.obey(found)
    assert json.loads(json.dumps(found)) == found


def test_every_option_file_can_be_chosen() -> None:
    for name in OPTION_FILES:
        group, _, option = name.removesuffix(".yaml").partition("/")
        missing = {
            "transformer_lens": ["target_model.model=embedded", "target_model.hook=blocks.0.hook"],
            "activations": ["target_model.path=x.npy"],
            "text": ["data.path=x"],
        }
        found = config(f"{group}={option}", *missing.get(option, []))
        assert found[group]["_target_"].startswith("sae_sweeps.")


def test_activations_from_files_need_no_data() -> None:
    found = config("target_model=activations", "target_model.path=x.npy")
    assert found["data"] == {"_target_": "sae_sweeps.data.none.NoData"}


# --- Values --------------------------------------------------------------------------------


def test_values_get_their_declared_types() -> None:
    found = config("training.tokens=1e6", "optimizer.lr=1", "k=8", "architecture.l1_coef=2")
    assert found["training"]["tokens"] == 1_000_000
    assert type(found["training"]["tokens"]) is int
    assert type(found["optimizer"]["lr"]) is float
    assert type(found["k"]) is float and type(found["allocator"]["k"]) is int
    assert type(found["architecture"]["l1_coef"]) is float


def test_shares_follow_the_tokens() -> None:
    for tokens in ("1000000", "1e6"):
        found = config(f"training.tokens={tokens}", "schedule.warmup_tokens=${share:0.123456789}")
        assert found["schedule"]["warmup_tokens"] == 123457


HINTS: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "int | None": int | None,
    "list[str]": list[str],
    "dict[str, int]": dict[str, int],
    "Literal['a', 'b']": Literal["a", "b"],
    "float | Literal['auto']": float | Literal["auto"],
    "list[float] | None": list[float] | None,
}


def belongs(value: Any, hint: Any) -> bool:
    """Say naively whether a value is of a type."""
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin is list:
        return type(value) is list and all(belongs(v, get_args(hint)[0]) for v in value)
    if origin is dict:
        return type(value) is dict and all(belongs(v, get_args(hint)[1]) for v in value.values())
    if get_args(hint):
        return any(belongs(value, part) for part in get_args(hint))
    return type(value) is hint and not (hint is float and not math.isfinite(value))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(value=VALUES, text=st.sampled_from(list(HINTS)))
def test_fit_gives_the_type_or_refuses(value: Any, text: str) -> None:
    try:
        fitted = fitting.fit(value, ast.parse(text, mode="eval").body)
    except TypeError:
        assert not belongs(value, HINTS[text])
    else:
        assert belongs(fitted, HINTS[text])
        assert fitted == value  # 1 == 1.0: types change, values never


@settings(max_examples=300)
@given(
    node=st.dictionaries(
        st.sampled_from(["_target_", "k", "kk"]) | st.text(max_size=4) | st.integers(),
        VALUES
        | st.sampled_from([NODE["_target_"], "os.path.join", "json", "a..b", ".x", "sys.exit", ""])
        | st.text(string.ascii_letters + "._", max_size=8).map(lambda text: f"zz_{text}"),
        max_size=4,
    )
)
def test_check_raises_nothing_but_config_errors(node: dict[Any, Any]) -> None:
    try:
        found = check("allocator", node)
    except ConfigError as error:
        assert str(error).startswith("allocator") and "\n" not in str(error)
    else:
        assert json.loads(json.dumps(found, allow_nan=False)) == found


IS_A = "from sae_sweeps import interfaces\nclass A(interfaces.Allocator):\n"


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("class A:\n    def __init__(self, *, x): ...", "its option 'x' has no type"),
        (f"{IS_A}    def __init__(self, *, x: bytes): ...", "allocator.x has the type bytes"),
        (
            "class A:\n    def __init__(self, *, x: int): ...",
            "expected a subclass of Allocator.",
        ),
        (IS_A.replace("Allocator)", "Schedule)") + "    x: int", "a subclass of Allocator."),
        (IS_A.replace("Allocator", "Mine") + "    x: int", "a subclass of Allocator."),
        ("class Allocator: ...\nclass A(Allocator):\n    ...", "a subclass of Allocator."),
        ("class A(A): ...", "a subclass of Allocator."),
        ("class B: ...", "defines no 'A'."),
        ("class A(:", "cannot be read"),
    ],
)
def test_a_class_that_cannot_be_an_option(
    source: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"variant_{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as error:
        check("allocator", {"_target_": f"{name}.A", "x": 1})
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    "named",
    [
        "import sae_sweeps.interfaces\nclass A(sae_sweeps.interfaces.Allocator): ...",
        "import sae_sweeps.interfaces as kinds\nclass A(kinds.Allocator[int]): ...",
        "from sae_sweeps.allocator.token_choice import TokenChoice as T\nclass A(T): ...",
        "from sae_sweeps.interfaces import Allocator\ndef A(*, k: int) -> Allocator: ...",
        "from .near import Near\nclass A(Near): ...",
        "from . import near\nclass A(near.Near): ...",
        "from .inner import Near\nclass A(int, Near): ...",
        "from .near import Near as A",
    ],
)
def test_what_a_class_is_is_told_by_its_source(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / f"package_{hashlib.sha256(named.encode()).hexdigest()[:8]}"
    near = "from sae_sweeps.interfaces import Allocator\nclass Near(Allocator): ..."
    for path, text in (("__init__", ""), ("near", near), ("it", named)):
        write(package / f"{path}.py", f"raise RuntimeError\n{text}")
    write(package / "inner/__init__.py", "from ..near import Near")
    monkeypatch.syspath_prepend(tmp_path)
    assert is_a(f"{package.name}.it.A", "sae_sweeps.interfaces.Allocator")
    assert not is_a(f"{package.name}.it.A", "sae_sweeps.interfaces.Architecture")


def test_a_path_is_no_module(tmp_path: Path) -> None:
    path = tmp_path / "outside"
    path.with_suffix(".py").write_text("class A: ...")
    for module in (f"sae_sweeps.{path}", str(path), "sae_sweeps...errors", "sae_sweeps. errors"):
        with pytest.raises(LookupError, match="there is no module"):
            definition(f"{module}.A")


# --- Override grammar ----------------------------------------------------------------------

WORDS = st.text(string.ascii_letters, min_size=1, max_size=4).filter(
    lambda word: word.lower() not in ("null", "true", "false", "nan", "inf")
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)


@given(
    value=st.recursive(
        SCALARS | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=2),
        max_leaves=4,
    )
)
def test_literal_is_read_back_as_the_same_value(value: Any) -> None:
    override = OverridesParser.create().parse_override(f"key={literal(value)}")
    assert not override.is_sweep_override()
    read = override.value()
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize("text", ["a,b", "1", "null", "range(1,3)", "a'b", "a\\", "\\'", "[1]", ""])
def test_texts_that_look_like_something_else_stay_texts(text: str) -> None:
    override = OverridesParser.create().parse_override(f"key={literal(text)}")
    assert not override.is_sweep_override() and override.value() == text


# --- Identity ------------------------------------------------------------------------------

SAME = [
    ["optimizer.lr=1e-3", "optimizer.lr=0.001", "optimizer.lr=0.0010"],
    ["training.tokens=1e6", "training.tokens=1000000"],
    ["aux_loss.coef=1", "aux_loss.coef=1.0"],
    ["k=8", "k=8.0"],
    ["architecture.l1_coef=0.0", "architecture.l1_coef=-0.0"],
    ["device=auto", "device=cpu", "threads=2", "name=x", "tracking=off", "evaluation.tokens=20000"],
    ["method=relu architecture.target_l0=8 k=4", "method=relu architecture.target_l0=8 k=5"],
    ["method=topk", "method=none"],
    ["data=c4 data.streaming=true", "data=c4 data.streaming=false"],
]
OTHER = [
    *("seed=1", "k=8", "allocator.k=8", "d_sae=512", "optimizer.lr=1e-5", "stream.seed=1"),
    *("optimizer.beta2=0.99", "method=gated", "aux_loss=none", "data.context_tokens=64"),
    *("target_model.hook=blocks.0.hook_resid_post", "allocator=mutual_choice"),
    *("target_model.compatibility_mode=true", "target_model.dtype=bfloat16"),
]


@pytest.mark.parametrize("spellings", SAME, ids=lambda spellings: spellings[0])
def test_what_means_the_same_has_one_identity(spellings: list[str]) -> None:
    assert len({identity(RunConfig.of(config(*words.split()))) for words in spellings}) == 1


def test_what_changes_the_weights_has_another_identity() -> None:
    found = [identity(RunConfig.of(config(words))) for words in ["name=base", *OTHER]]
    assert len(set(found)) == len(found)


def test_a_changed_default_in_yaml_changes_the_identity() -> None:
    cfg = composed()
    before = identity(RunConfig.of(checked(cfg)))
    OmegaConf.set_struct(cfg, False)
    cfg.optimizer.beta1 = 0.5
    assert identity(RunConfig.of(checked(cfg))) != before


def test_a_stream_is_shared_by_what_reads_the_same_batches() -> None:
    base = stream_identity(RunConfig.of(config()))
    for word in ("seed=1", "method=gated", "k=4", "optimizer.lr=1e-4", "training.tokens=400000"):
        assert stream_identity(RunConfig.of(config(word))) == base
    for word in ("stream.seed=1", "stream.batch_tokens=512", "target_model.rows_per_forward=1"):
        assert stream_identity(RunConfig.of(config(word))) != base


def test_what_a_default_was_before_it_became_auto_is_the_same_run() -> None:
    def known(rows: int | str) -> tuple[str, str]:
        made = RunConfig.of(config(f"target_model.rows_per_forward={rows}"))
        return identity(made), stream_identity(made)

    assert known("auto") == known(16) != known(32)


def test_the_resolver_names_the_run_as_the_launcher_does() -> None:
    cfg = composed("method=gated", "k=4", "tracking=off", "name=x")
    choices = dict(cfg.hydra.runtime.choices)
    name = run_name(RunConfig.of(checked(cfg)), choices)
    assert cfg.hydra.sweep.subdir == f"runs/{name}"
    assert cfg.hydra.sweep.dir == "outputs/x"
    assert name.startswith("gated-k4-s0-")


@pytest.mark.parametrize(
    ("architecture", "allocator", "aux_loss", "expected"),
    [
        ("relu", "none", "none", "relu"),
        ("gated", "none", "none", "gated"),
        ("relu", "token_choice", "aux_k", "token_choice + aux_k"),
        ("gated", "mutual_choice", "none", "gated × mutual_choice"),
        ("jumprelu", "none", "aux_k", "jumprelu + aux_k"),
    ],
)
def test_labels_come_from_the_groups(
    architecture: str, allocator: str, aux_loss: str, expected: str
) -> None:
    choices = {"architecture": architecture, "allocator": allocator, "aux_loss": aux_loss}
    assert label(choices) == expected


# --- Budgets -------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    d_sae=st.integers(1, 200),
    share=st.floats(0.01, 1),
    exponent=st.floats(0, 3),
    shift=st.floats(0, 50),
)
def test_the_rarest_density_is_what_water_filling_leaves(
    d_sae: int, share: float, exponent: float, shift: float
) -> None:
    k = max(share * d_sae, 0.1)
    weights = [(rank + shift) ** -exponent for rank in range(1, d_sae + 1)]
    low, high = 0.0, 2 / weights[-1] + 1
    for _ in range(200):  # bisection on C, against the closed form
        middle = (low + high) / 2
        enough = sum(min(1.0, middle * weight) for weight in weights) >= k
        low, high = (low, middle) if enough else (middle, high)
    expected = min(1.0, high * weights[-1])
    found = rarest_density(d_sae, k, exponent, shift)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)
