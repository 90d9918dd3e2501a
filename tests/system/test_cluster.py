"""What `cluster` makes of SLURM's answers, by stand-ins for its commands; no SLURM needed."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sae_sweeps.system import cluster
from sae_sweeps.system.cluster import ClusterError, Job

LIVE = [
    *("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD"),
    *("REQUEUE_FED", "RESIZING", "RESV_DEL_HOLD", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT"),
    *("STOPPED", "POWER_UP_NODE", "UPDATE_DB"),
]
OVER = [
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"),
]
"""SLURM's words for states, from the manual of squeue."""

Stand = Callable[..., Callable[[], list[str]]]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stand:
    """Puts a shell script in a command's place; what it returns tells the calls so far."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(name: str, *lines: str) -> Callable[[], list[str]]:
        calls = tmp_path / f"{name}.calls"
        script = tmp_path / name
        script.write_text("\n".join(["#!/bin/sh", f'echo "$@" >> {calls}', *lines]) + "\n")
        script.chmod(0o755)
        return lambda: calls.read_text().splitlines() if calls.exists() else []

    return make


def answer(rows: Sequence[str]) -> str:
    """A line of shell that prints rows."""
    return "\n".join(["/bin/cat <<'END'", *rows, "END"]) if rows else ":"


FILES = ("/outputs/it/packs/.submission_file_1.sh", "/outputs/it/packs/%A_%a/%A_%a_0_log.out")
OURS = ("it", tuple(map(Path, FILES)))


def queued(id: str, state: str, node: str = "", restarts: str = "0", reason: str = "None") -> str:
    """A row as squeue prints it: fields of fixed widths."""
    where = f"{'it':256}|{FILES[0]:4096}|{FILES[1]:4096}"
    return f"{id:64}|{state:32}|{node:256}|{restarts:16}|{where}|{reason:256}"


def test_a_job_is_live_until_slurm_says_that_it_ended(stand_in: Stand) -> None:
    states = [*LIVE, *OVER, "A_STATE_TO_COME"]
    stand_in("squeue", answer([queued(str(i), state) for i, state in enumerate(states)]))
    found = cluster.jobs(map(str, range(len(states))))
    assert [job.state for job in found.values()] == states
    assert [job.live for job in found.values()] == [True] * 16 + [False] * 12 + [True]


def test_fields_of_the_queue(stand_in: Stand) -> None:
    rows = [
        queued("7_1", "RUNNING", "node[3-4]", "2"),
        queued("7_0", "PENDING", "(null)", "N/A", "Nodes required are DOWN | held"),
        queued("8", "RUNNING"),
        "a line of the cluster's own",
    ]
    stand_in("squeue", answer(rows))
    found = cluster.jobs(["7_0", "7_1"])
    assert list(found) == ["7_0", "7_1"]
    assert found["7_0"] == Job("7_0", "PENDING", "", "Nodes required are DOWN | held", 0, *OURS)
    assert found["7_1"] == Job("7_1", "RUNNING", "node[3-4]", "", 2, *OURS)


def test_the_accounting_is_asked_only_for_what_the_controller_forgot(stand_in: Stand) -> None:
    stand_in("squeue", answer([queued("7_1", "RUNNING", "n1", "1")]))
    rows = [
        "7_1|FAILED|n9|1:0|it",
        "9|CANCELLED by 1000|n2|0:15|it",
        "10|TIMEOUT|n3|0:0|a|b",
        "11|NODE_FAIL|None assigned|1:0|it",
        "12|RUNNING|n4|0:0|it",
        "13_[0-4]|PENDING|None assigned|0:0|it",
        "14|COMPLETED|n1|0:0|it",
        "a line of the cluster's own",
    ]
    calls = stand_in("sacct", answer(rows))
    found = cluster.jobs(["9", "7_1", "10", "11", "12", "13_2", "14"])
    assert found == {
        "9": Job("9", "CANCELLED", "n2", "by 1000", 0, "it", ()),
        "7_1": Job("7_1", "RUNNING", "n1", "", 1, *OURS),
        "10": Job("10", "TIMEOUT", "n3", "", 0, "a|b", ()),
        "11": Job("11", "NODE_FAIL", "", "exit code 1:0", 0, "it", ()),
        "14": Job("14", "COMPLETED", "n1", "", 0, "it", ()),
    }
    assert len(calls()) == 1
    assert calls()[0].endswith("--jobs=9,10,11,12,13,14")
    assert list(cluster.jobs(["7_1"])) == ["7_1"]
    assert len(calls()) == 1


@pytest.mark.parametrize(
    "sacct",
    [None, ("echo accounting is disabled >&2", "exit 1"), ("exec /bin/sleep 5",)],
    ids=["missing", "disabled", "slow"],
)
def test_without_accounting_forgotten_jobs_are_missing(
    stand_in: Stand, monkeypatch: pytest.MonkeyPatch, sacct: tuple[str, ...] | None
) -> None:
    stand_in("squeue", answer([queued("2", "RUNNING")]))
    if sacct is not None:
        stand_in("sacct", *sacct)
    monkeypatch.setattr(cluster, "TIMEOUT_SECONDS", 0.3)
    assert list(cluster.jobs(["1", "2"])) == ["2"]


def test_a_controller_that_knows_none_of_the_jobs_is_no_error(stand_in: Stand) -> None:
    stand_in("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2", "exit 1")
    stand_in("sacct", answer(["5|FAILED|n1|3:0|it"]))
    assert cluster.jobs(["5", "6"]) == {"5": Job("5", "FAILED", "n1", "exit code 3:0", 0, "it", ())}


def test_arrays_are_asked_for_once_and_long_lists_in_parts(stand_in: Stand) -> None:
    tasks = [f"3_{task}" for task in range(1200)]
    calls = stand_in("squeue", answer([queued(id, "PENDING") for id in tasks]))
    assert list(cluster.jobs(tasks)) == tasks
    assert [call.split()[-1] for call in calls()] == ["--jobs=3"]

    lists = 'for word in "$@"; do case $word in --jobs=*) list=${word#--jobs=};; esac; done'
    row = 'IFS=,; for id in $list; do echo "$id|RUNNING|n1|0|it|/s|/o|None"; done'
    calls = stand_in("squeue", lists, row)
    ids = [str(id) for id in range(1, 1201)]
    assert list(cluster.jobs(ids)) == ids
    assert len(calls()) == 1 + 3


@pytest.mark.usefixtures("stand_in")
def test_no_jobs_are_no_call() -> None:
    assert cluster.jobs([]) == {}
    cluster.cancel([])


@pytest.mark.parametrize("ask", [cluster.jobs, cluster.cancel])
@pytest.mark.parametrize(
    ("script", "told"),
    [
        (None, "call this on a machine of the cluster"),
        (("exec /bin/sleep 5",), "gave no answer in 0 s"),
        (("echo first >&2", "echo 'Access/permission   denied' >&2", "exit 210"), "says: Access/p"),
        (("echo 'Invalid job id specified' >&2", "echo broken >&2", "exit 1"), "says: broken;"),
        (("exit 3",), "nothing, with exit code 3"),
        (("printf 'caf\\351\\n' >&2", "exit 1"), "says: caf"),
    ],
    ids=["missing", "slow", "refused", "both", "silent", "not UTF-8"],
)
def test_what_is_wrong_with_slurm_is_told_in_one_line(
    stand_in: Stand,
    monkeypatch: pytest.MonkeyPatch,
    script: tuple[str, ...] | None,
    told: str,
    ask: Callable[[list[str]], object],
) -> None:
    for name in ("squeue", "scancel") if script is not None else ():
        stand_in(name, *(script or ()))
    monkeypatch.setattr(cluster, "TIMEOUT_SECONDS", 0.3)
    with pytest.raises(ClusterError) as error:
        ask(["1"])
    name = "squeue" if ask is cluster.jobs else "scancel"
    assert f"SLURM's {name}" in str(error.value)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_cancelling_names_every_job_once(stand_in: Stand) -> None:
    said = "scancel: error: Kill job error on job id 4: Job/step already completing or completed"
    calls = stand_in("scancel", f"echo '{said}' >&2", "exit 1")
    cluster.cancel(["4", "3_0", "3_1", "4"])
    assert calls() == ["4 3_0 3_1"]


def test_a_users_settings_reach_no_command(
    stand_in: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SQUEUE_STATES", "SACCT_FORMAT", "SCANCEL_INTERACTIVE", "SLURM_CONF"):
        monkeypatch.setenv(name, "x")
    row = queued("1", "RUNNING", "$SQUEUE_STATES$SCANCEL_INTERACTIVE", reason="$SLURM_CONF")
    stand_in("squeue", f'echo "{row}"')
    assert cluster.jobs(["1"]) == {"1": Job("1", "RUNNING", "", "x", 0, *OURS)}
