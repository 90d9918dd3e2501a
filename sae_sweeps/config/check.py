"""Checks a composed config against the signatures of the classes it names.

Nothing that a config names is imported (see `source`).
"""

import ast
import re
from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from sae_sweeps.config.fitting import expected, finite, fit
from sae_sweeps.config.groups import GLOBAL, GROUPS, NAMES
from sae_sweeps.config.history import MOVED
from sae_sweeps.config.options import ROOT, SECTIONS
from sae_sweeps.config.signature import NUMERICS, TARGET, numerics, signature
from sae_sweeps.config.source import is_a
from sae_sweeps.errors import ConfigError, did_you_mean, one_line

# --- One node ------------------------------------------------------------------------------


def plain(path: str, value: Any) -> Any:
    """Return a value of plain, finite JSON; raises ConfigError."""
    if isinstance(value, dict):
        items = {_text(path, key): item for key, item in value.items()}
        return {key: plain(_dotted(path, key), item) for key, item in items.items()}
    if isinstance(value, list):
        return [plain(f"{path}[{i}]", item) for i, item in enumerate(value)]
    if value is None or type(value) in (bool, str):
        return value
    if type(value) in (int, float) and finite(value):
        return value
    wanted = "a finite number" if type(value) in (int, float) else "a number or text"
    raise ConfigError(f"{path} is {one_line(repr(value))}, expected {wanted}.")


def _text(path: str, key: Any) -> str:
    if isinstance(key, str):
        return key
    raise ConfigError(f"{path} has the key {key!r}, expected text.")


def check(path: str, node: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the node with every option as its declared type; raises ConfigError."""
    target = node.get("_target_")
    where = _dotted(path, "_target_")
    if not isinstance(target, str):
        raise ConfigError(f"{where} is {one_line(repr(target))}, expected the name of a class.")
    try:
        hints = signature(target)
    except LookupError as error:
        raise ConfigError(f"{where} is {target!r}: {one_line(error.args[0])}") from None
    group = next((group for group in GROUPS if group.name == path), None)
    if group and not is_a(target, group.base):
        raise ConfigError(f"{where} is {target!r}, expected a subclass of {group.kind}.")
    given = {key: value for key, value in node.items() if key != TARGET}
    owner = target.rpartition(".")[2]
    _names(path, given, hints, owner.removesuffix("Options") or owner)
    fixed = {n: _option(_dotted(path, n), given[n], hints[n].hint) for n in hints}
    number = numerics(target)
    return {TARGET: target} | fixed | ({NUMERICS: number} if number != 1 else {})


def _names(path: str, given: Collection[Any], hints: Collection[str], owner: str) -> None:
    """Refuse options that the class does not have, and the lack of those it has."""
    what = f"an option of {owner}" if path else "an option"
    for name in given:
        if name not in hints:
            guess = did_you_mean(name, [hint for hint in hints if hint not in given] or hints)
            if place := MOVED.get(_dotted(path, name)):
                raise ConfigError(f"{_dotted(path, name)} is {place} now.")
            raise ConfigError(f"{_dotted(path, name)} is not {what}.{guess}")
    for name in hints:
        if name not in given:
            raise ConfigError(f"{_dotted(path, name)} is missing: it is {what}, without default.")


def _option(path: str, value: Any, hint: ast.expr) -> Any:
    try:
        return plain(path, fit(value, hint))
    except TypeError:
        texts = [n.value for n in ast.walk(hint) if isinstance(n, ast.Constant)]
        guess = did_you_mean(value, [text for text in texts if isinstance(text, str)])
        text = f"{path} is {one_line(repr(value))}, expected {expected(hint, value)}.{guess}"
        raise ConfigError(text) from None
    except LookupError as error:
        raise ConfigError(f"{path} {error.args[0]}") from None


def _dotted(path: str, name: object) -> str:
    return one_line(f"{path}.{name}" if path else name)


# --- One config ----------------------------------------------------------------------------


def checked(cfg: DictConfig, choices: Collection[str] | None = None) -> dict[str, Any]:
    """Return the resolved, checked, normalised config of one run; raises ConfigError.

    Args:
        choices: the config's groups, where `cfg` has lost its `hydra` node. A group that the
            schema does not know is one that the user brought; its node is kept.
    """
    return check_tree(_resolved(cfg), _groups(cfg) if choices is None else choices)


def check_tree(root: Mapping[str, Any], known: Collection[str]) -> dict[str, Any]:
    """Return the checked, normalised config of one run that is plain data; raises ConfigError.

    Args:
        known: the config's groups, a user's own among them.
    """
    for group in GLOBAL:
        if group in root:
            text = f"{group} holds options: its file must begin with '# @package _global_'."
            raise ConfigError(text)
    extras = {k: v for k, v in root.items() if k in known and k not in NAMES and _is_node(v)}
    groups = {name: _node(name, root) for name in NAMES}
    base = {k: v for k, v in root.items() if k not in extras and k not in groups}
    out = check("", {TARGET: ROOT} | base)
    del out[TARGET]
    for section, target in SECTIONS.items():
        node = {TARGET: target} | out[section]
        out[section] = {k: v for k, v in check(section, node).items() if k != TARGET}
    for group, node in groups.items():
        out[group] = check(group, node)
    for group, node in extras.items():
        out[group] = check(group, node) if "_target_" in node else plain(group, node)
    return out


def _node(group: str, root: Mapping[str, Any]) -> dict[str, Any]:
    if group not in root:
        raise ConfigError(f"{group} is missing: it is an option, without default.")
    node = root[group]
    if not isinstance(node, dict):
        raise ConfigError(f"{group} is {one_line(repr(node))}, expected dict[str, Any].")
    return {str(key): value for key, value in node.items()}


def _is_node(value: Any) -> bool:
    return isinstance(value, dict)


def _groups(cfg: DictConfig) -> list[str]:
    chosen = OmegaConf.select(cfg, "hydra.runtime.choices") or {}
    return [str(group) for group in chosen]


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """Resolve interpolations; a mistake in one becomes a ConfigError with the option's path."""
    keys = [_text("the config", key) for key in cfg if key != "hydra"]
    bare = OmegaConf.masked_copy(cfg, keys)
    _refuse_volatile("", OmegaConf.to_container(bare, resolve=False))
    try:
        training_tokens(cfg)  # first, since `share` needs it wherever it stands
        out = OmegaConf.to_container(bare, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(omegaconf_line(error)) from None
    assert isinstance(out, dict)
    return {str(key): value for key, value in out.items()}


def omegaconf_line(error: OmegaConfBaseException) -> str:
    """Word OmegaConf's complaint by the option's path."""
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be given: it has no default."
    first = str(error).splitlines()[0]
    if re.search("RecursionError|refers to itself", first):
        return one_line(f"{error.full_key} refers to itself.")
    first = re.sub(r"^\w+ raised while resolving interpolation: ", "", first)
    parent = error.parent_node
    name = str(error.full_key or "").rpartition(".")[2]
    if " not in " in first and isinstance(parent, Container):
        known = parent.keys() if isinstance(parent, DictConfig) else ()
        elsewhere = _elsewhere(name, parent) if name == error.full_key else ""
        guess = elsewhere or did_you_mean(name, known)
        return f"{one_line(error.full_key)} is not an option.{guess}"
    now = [f" {old} is {new} now." for old, new in MOVED.items() if f"'{old}'" in first]
    return one_line(f"{error.full_key}: {first}" if error.full_key else first) + "".join(now)


def _elsewhere(name: str, root: Container) -> str:
    """End a complaint about `lr` with `optimizer.lr`."""
    nodes = OmegaConf.to_container(root, resolve=False)
    items = nodes.items() if isinstance(nodes, dict) else ()
    paths = [f"{key}.{name}" for key, node in items if isinstance(node, dict) and name in node]
    return f" Did you mean {paths[0]!r}?" if paths else ""


def _refuse_volatile(path: str, value: Any) -> None:
    """Refuse values that differ at every call: they would make every run a new one."""
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_volatile(_dotted(path, key), item)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _refuse_volatile(f"{path}[{i}]", item)
    elif isinstance(value, str) and re.search(r"\$\{\s*(now|hydra)\s*[:.]", value):
        text = f"{path} is {value!r}: a run's options may not depend on the time or on Hydra."
        raise ConfigError(text)


# --- Resolvers -----------------------------------------------------------------------------


def training_tokens(root: Container) -> int | float:
    """Read `training.tokens` before the config is checked; raises ConfigError."""
    tokens = OmegaConf.select(root, "training.tokens")
    if type(tokens) in (int, float) and finite(tokens):
        return tokens
    raise ConfigError(f"training.tokens is {one_line(repr(tokens))}, expected int.")


def share(*given: Any, _root_: Container) -> int:
    """`${share:0.05}`: that share of training.tokens, as a whole number of tokens."""
    if len(given) == 1 and type(given[0]) in (int, float) and finite(given[0]):
        return round(given[0] * training_tokens(_root_))
    text = ",".join(map(str, given))
    raise ConfigError(f"${{share:{text}}} needs a number, such as ${{share:0.05}}.")


OmegaConf.register_new_resolver("share", share, replace=True, use_cache=False)
