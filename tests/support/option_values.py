"""The options that there are, and values for them: of their type, of another, out of range, broken.

Groups, options and types come from conf/ and the signatures, so new variants are included.
"""

import ast
import math
import string
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from sae_sweeps.config import groups
from sae_sweeps.config.check import plain
from sae_sweeps.config.fitting import fit
from sae_sweeps.config.options import ROOT, SECTIONS
from sae_sweeps.config.signature import signature
from sae_sweeps.errors import ConfigError
from tests.support.places import CONF


class Option(NamedTuple):
    """An option, and the words that choose the file which has it."""

    path: str
    hint: ast.expr
    chosen: tuple[str, ...]
    allows: Callable[[int | float], bool]


# --- What there is ---------------------------------------------------------------------------


def files(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@cache
def options() -> list[Option]:
    """Every option of every option file whose other options all have values."""
    found = [
        Option(name, option.hint, (), option.allows)
        for name, option in signature(ROOT).items()
        if name not in SECTIONS
    ]
    for section, owner in SECTIONS.items():
        hints = signature(owner)
        found += [Option(f"{section}.{name}", o.hint, (), o.allows) for name, o in hints.items()]
    for group in groups.NAMES:
        for name in files(group):
            node = OmegaConf.load(CONF / group / f"{name}.yaml")
            assert isinstance(node, DictConfig)
            if "_target_" not in node:  # it is another file's with other values
                continue
            if name != "activations" and any(OmegaConf.is_missing(node, key) for key in node):
                continue
            hints = signature(str(node["_target_"]))
            found += [
                Option(f"{group}.{key}", option.hint, (f"{group}={name}",), option.allows)
                for key, option in hints.items()
            ]
    return found


# --- Values ----------------------------------------------------------------------------------

VALUES: tuple[tuple[str, Any], ...] = (
    *((text, int(text)) for text in ("0", "1", "2", "3", "8", "16", "32", "64", "100", "128")),
    *((text, float(text)) for text in ("0.0", "0.1", "0.5", "0.9", "1.0", "1e-3", "3e-4", "2.5")),
    *(("-1", -1), ("-0.5", -0.5), ("1e30", 1e30), ("1e300", 1e300), (str(2**70), 2**70)),
    *(("nan", math.nan), ("inf", math.inf), ("-inf", -math.inf), ("1e999", math.inf)),
    *(("true", True), ("False", False), ("null", None), ("NULL", None)),
    *((text, text) for text in ("abc", "yes", "auto", "0x10", "1 2", "1_", "None", "off")),
    *(("''", ""), ('"5"', "5"), ("[]", []), ("[1,2]", [1, 2]), ("[a]", ["a"]), ("{}", {})),
    *(("[0.5,0.5]", [0.5, 0.5]), ("{a:1}", {"a": 1}), ("[[1],{b:[2]}]", [[1], {"b": [2]}])),
)
"""Texts in the grammar of overrides, with what they mean."""

GIANT = tuple((str(n), n) for n in (2**26, 2**27, 10**12, 2**63 - 1, 2**63, 10**400))


def fits(value: Any, hint: ast.expr) -> bool:
    try:
        plain("", fit(value, hint))
    except (TypeError, ConfigError):
        return False
    return True


def allowed(option: Option, value: Any) -> bool:
    """Whether the option's bounds let a number pass."""
    return not isinstance(value, int | float) or option.allows(value)


def texts(option: Option, *, fitting: bool, legal: bool) -> list[str]:
    """The texts of values that are of the option's type, or not, and within limits, or not."""
    words = [node.value for node in ast.walk(option.hint) if isinstance(node, ast.Constant)]
    choices = [(word, word) for word in words if isinstance(word, str)]
    return [
        text
        for text, value in (*choices, *VALUES, *GIANT)
        if fits(value, option.hint) == fitting and allowed(option, value) == legal
    ]


def unreadable(word: str) -> bool:
    try:
        OverridesParser.create().parse_overrides([word])
    except HydraException:
        return True
    return False


ANY_TEXT = st.text(
    st.one_of(
        st.sampled_from("${}[]()'\"\\,=:.@~+- \n\t/*%#!"),
        st.sampled_from(string.ascii_letters + string.digits),
        st.characters(exclude_characters="\0", exclude_categories=()),
    ),
    max_size=25,
)
BROKEN = [
    *("[1", "{a", "'x", '"x', "a]", "${", "${x", "1,", ",1", "f(1", "choice(", "ü", "{a:1}}", "("),
    *("choice()", "int(abc)", "range(1)", "x\\", "[1,,2]", "sort(", "${a:b", "a=b", "\n"),
]
UNRESOLVED = [
    *("${nothing}", "${a.b.c}", "${share:x}", "${share:}", "${oc.env:NO_SUCH}", "${}", "${..x}"),
    *("${now:%H}", "${hydra:job.num}", "${.nothing}", "${nope:1}", "${share:1,2}"),
]
NAMES = ["../x", "a/b", ".x", "-x", "'ü'", "a b", "x" * 101, "''", "true", "1e3", "'a\nb'", "..."]
DEVICES = ["gpu", "cuda:x", "CPU", "cuda:99", "mps:0", "''", "cuda:-1", "cuda:" + "9" * 30]
STRAY = ["8", "k", "relu", "outputs/x", "k:3", "lr", "training", "3e-4", "[1,2]", "'", "k-16"]
FLAGS = ["--k", "-k", "--lr=3", "--bogus", "--no-progress", "-z", "--device", "---", "-K"]
ENDLESS = ["range(1e6)", "range(0,1e300)", "range(10000000000)", "range(0,5,0)", "interval(0,1)"]
