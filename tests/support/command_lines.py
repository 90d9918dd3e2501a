"""Command lines for hypothesis: sound ones, ones with a single known mistake, and any others."""

import string
from dataclasses import dataclass

from hypothesis import strategies as st

from sae_sweeps.config import groups
from tests.support.option_values import (
    ANY_TEXT,
    BROKEN,
    DEVICES,
    ENDLESS,
    FLAGS,
    GIANT,
    NAMES,
    STRAY,
    UNRESOLVED,
    VALUES,
    files,
    options,
    texts,
    unreadable,
)
from tests.support.places import SUPPORT


@dataclass(frozen=True)
class Line:
    """A command line, and what is known about it."""

    words: tuple[str, ...]
    sound: bool = False
    """It must end with 0."""
    culprit: str | None = None
    """It must be refused with a line that holds this."""


@st.composite
def misspelt(draw: st.DrawFn, word: str, known: tuple[str, ...]) -> str:
    """A word with a letter left out, doubled, put in, or taken by another."""
    at = draw(st.integers(0, len(word) - 1))
    letter = draw(st.sampled_from(string.ascii_lowercase + "_"))
    one_less, doubled = word[:at] + word[at + 1 :], word[:at] + word[at] + word[at:]
    changed = word[:at] + letter + word[at + 1 :], word[:at] + letter + word[at:]
    found = [w for w in (one_less, doubled, *changed) if w and w not in known]
    return draw(st.sampled_from([w for w in found if w[0] in string.ascii_lowercase] or [word * 2]))


# --- Lines -----------------------------------------------------------------------------------


@st.composite
def sound(draw: st.DrawFn) -> Line:
    """A line that trains one to three runs."""
    group = draw(st.sampled_from(("method", "allocator")))
    words = [f"{group}={draw(st.sampled_from(files(group)))}"]
    axes = {
        "k": ["1", "2", "4", "2.0", "1,2", "range(1,3)", "choice(3,2)", "3e0"],
        "seed": ["0", "3", "1,2", "range(2)", "9223372036854775807"],
        "optimizer.lr": ["1e-3", "0.002", "1e-3,3e-3"],
        "d_sae": ["16", "33", "32.0"],
        "name": ["x", "'a.b'", "A-1_", "null"],
        "training.tokens": ["1024", "1_000", "5e2"],
        "training.gradient_clip_norm": ["0.5"],
        "stream.repeat": ["true", "False"],
        "threads": ["1", "2"],
    }
    for key in draw(st.lists(st.sampled_from(sorted(axes)), max_size=3, unique=True)):
        prefix, value = draw(st.sampled_from(("", "++"))), draw(st.sampled_from(axes[key]))
        words.append(f"{prefix}{key}={value}")
    more = [[], [], ["-m"], ["--multirun"], ["hydra.launcher.progress=auto"]]
    words += draw(st.sampled_from(more))
    return Line(tuple(draw(st.permutations(words))), sound=True)


@st.composite
def one_mistake(draw: st.DrawFn) -> Line:
    """A sound line with one mistake more."""
    words, culprit = draw(st.sampled_from(MISTAKES).flatmap(lambda mistake: mistake()))
    groups = {word.partition("=")[0] for word in words}
    around = draw(st.sampled_from(([], ["seed=3"], ["stream.seed=1", "-m"], ["seed=0,1"])))
    others = [word for word in around if word.partition("=")[0] not in groups]
    at = draw(st.integers(0, len(others)))
    return Line((*others[:at], *words, *others[at:]), culprit=culprit)


Mistake = tuple[list[str], str]


@st.composite
def wrong_key(draw: st.DrawFn) -> Mistake:
    option = draw(st.sampled_from(options()))
    parts = option.path.split(".")
    at = draw(st.integers(0, len(parts) - 1))
    known = {name for o in options() for name in o.path.split(".")} | {*groups.GLOBAL, "hydra"}
    parts[at] = draw(misspelt(parts[at], tuple(known)))
    prefix = draw(st.sampled_from(("", "", "+", "++")))
    value = draw(st.sampled_from(texts(option, fitting=True, legal=True)))
    return [*option.chosen, f"{prefix}{'.'.join(parts)}={value}"], parts[at]


@st.composite
def wrong_choice(draw: st.DrawFn) -> Mistake:
    group = draw(st.sampled_from((*groups.NAMES, *groups.GLOBAL)))
    known = files(group)
    name = draw(misspelt(draw(st.sampled_from(known)), tuple(known)))
    axis = [name, f"{name},none", f"none,{name}"] if "none" in known else [name]
    return [f"{'+' * (group == 'sweep')}{group}={draw(st.sampled_from(axis))}"], name


@st.composite
def wrong_value(draw: st.DrawFn) -> Mistake:
    option = draw(st.sampled_from(options()))
    no_type = texts(option, fitting=False, legal=True)
    no_limit = texts(option, fitting=True, legal=False)
    no_sense = [*UNRESOLVED, f"${{{option.path}}}"]
    pools = [pool for pool in (no_type, no_limit, no_sense) if pool]
    value = draw(st.sampled_from(pools).flatmap(st.sampled_from))
    return [*option.chosen, f"{option.path}={value}"], option.path


@st.composite
def wrong_grammar(draw: st.DrawFn) -> Mistake:
    path = draw(st.sampled_from(options())).path
    value = draw(st.sampled_from(BROKEN) | ANY_TEXT.filter(lambda t: unreadable(f"{path}={t}")))
    return [f"{path}={value}"], path


@st.composite
def wrong_word(draw: st.DrawFn) -> Mistake:
    word = draw(st.sampled_from([*STRAY, *FLAGS]) | ANY_TEXT.filter(_stray))
    return [word], repr(word)[1:-1]


def _stray(word: str) -> bool:
    return "=" not in word and bool(word.strip()) and word[0] not in "-+~"


@st.composite
def wrong_twice(draw: st.DrawFn) -> Mistake:
    option = draw(st.sampled_from(options()))
    values = texts(option, fitting=True, legal=True)
    prefix = draw(st.sampled_from(("", "++")))
    one, other = (draw(st.sampled_from(values)) for _ in range(2))
    return [*option.chosen, f"{option.path}={one}", f"{prefix}{option.path}={other}"], option.path


@st.composite
def wrong_otherwise(draw: st.DrawFn) -> Mistake:
    path = draw(st.sampled_from(options())).path
    long = draw(st.sampled_from(("a", "9", "[1],", "x.", "ü", " "))) * 5000
    cases = [
        ([f"name={draw(st.sampled_from(NAMES))}"], "name"),
        ([f"device={draw(st.sampled_from(DEVICES))}"], "device"),
        ([f"~{path}{draw(st.sampled_from(('', '=', '=1')))}"], path),
        ([f"k='{long}'"], "k is"),
        (["k=" + "[" * 300 + "]" * 300], "k="),
        (["d_sae=32", "k=33"], "k is 33"),
        ([f"seed={draw(st.sampled_from(ENDLESS))}"], "seed"),
        (["seed=range(200)", "k=range(1,201)"], "40000"),
        (["stream.chunk_tokens=32"], "stream.batch_tokens"),
        (["training.tokens=1e15"], "training.tokens"),
        (["evaluation.tokens=1e15"], "evaluation.tokens"),
        (["d_sae=67108864"], "d_sae"),
        (["architecture=[relu,gated]"], "architecture"),
        (["allocator=../architecture/relu"], "allocator"),
    ]
    return draw(st.sampled_from(cases))


MISTAKES = [
    *(wrong_key, wrong_choice, wrong_value, wrong_value, wrong_grammar, wrong_word, wrong_twice),
    *(wrong_otherwise, wrong_otherwise),
]


@st.composite
def contradictory(draw: st.DrawFn) -> Line:
    """Any combination of groups, with values in range for some of their options."""
    chosen = draw(st.lists(st.sampled_from(FREE), min_size=1, max_size=3, unique=True))
    words = [f"{group}={draw(st.sampled_from(files(group)))}" for group in chosen]
    at_hand = [o for o in options() if set(o.chosen) <= set(words)]
    some = st.lists(st.sampled_from(at_hand), max_size=2, unique_by=lambda option: option.path)
    for option in draw(some):
        if option.path not in ("name", "device"):
            legal = texts(option, fitting=True, legal=True)
            words.append(f"{option.path}={draw(st.sampled_from(legal))}")
    more = [
        [],
        [],
        ["k=1,4"],
        ["+sweep=smoke", "k=2"],
        ["optimizer.lr=1e30"],
        ["optimizer.lr=9,1e9"],
    ]
    words += draw(st.sampled_from(more))
    last = {word.partition("=")[0]: word for word in words}
    return Line(tuple(draw(st.permutations(list(last.values())))))


@st.composite
def flagged(draw: st.DrawFn) -> Line:
    """Sound words with flags, many of which only tell something."""
    flags = draw(st.lists(st.sampled_from(ASKING), min_size=1, max_size=2)).copy()
    words = [word for word in draw(sound()).words if "," not in word]
    at = draw(st.integers(0, len(words)))
    return Line((*words[:at], *(word for flag in flags for word in flag.split()), *words[at:]))


ASKING = (
    *("-c job", "--cfg=hydra", "-c all", "-c job -p training", "-c job --resolve", "-h", "--help"),
    *("--hydra-help", "--version", "-i plugins", "--info=searchpath", "-r", "--run", "-i defaults"),
    *("-sc install=bash", "-m", "-hm", "--info", "-p training", "-cd ."),
)
FREE = (
    "method",
    "architecture",
    "allocator",
    "aux_loss",
    "resampling",
    "fine_tune",
    "target_model",
)

TYPED = (SUPPORT / "typed_words.txt").read_text(encoding="utf-8").splitlines()
"""What people type, or might: one word a line."""


@st.composite
def anything(draw: st.DrawFn) -> Line:
    """Words of every kind in any order."""
    known = st.sampled_from(options()).map(lambda option: option.path)
    written = [text for text, _ in (*VALUES, *GIANT)]
    value = st.sampled_from(written + UNRESOLVED + BROKEN) | ANY_TEXT
    keyed = st.builds("{}{}={}".format, st.sampled_from(("", "", "+", "++", "~")), known, value)
    word = st.one_of(st.sampled_from(["", " ", *TYPED]), st.sampled_from(TYPED), keyed, ANY_TEXT)
    return Line(tuple(draw(st.lists(word, min_size=1, max_size=4))))


KINDS = 3 * [sound] + 3 * [one_mistake] + 2 * [contradictory] + 2 * [anything] + [flagged]
LINES = st.sampled_from(KINDS).flatmap(lambda kind: kind())
