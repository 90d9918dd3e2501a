#!/usr/bin/env bash
# A throw-away SLURM cluster on one machine, for tests: every node is a slurmd of its own here.
#
#   start-slurm.sh start [--nodes 4] [--gpus 2] [--cpus 8] [--mem 4000]   gpus, cpus, MB per node
#                        [--acct shim|none] [--extra 'a line of slurm.conf']...
#   eval "$(start-slurm.sh env)"       points this shell's sbatch, squeue ... at it
#   start-slurm.sh stop                ends its jobs and daemons; the folder with the logs stays
#
# Everything lies in $SLURM_LOCAL_DIR (short: a socket's path has at most 107 characters), ports
# are $SLURM_LOCAL_PORT and the few above it, so clusters can run side by side; nothing in /etc
# is read or written, and root is not needed. Nodes are n1, n2, ...; their GPUs are links to
# /dev/null, of which CUDA_VISIBLE_DEVICES shows the right ones. Partitions: gpu (default); low
# and grace, whose jobs are requeued when one of high needs the room, at once and after 20 s.
# --acct shim puts a `sacct` before the real one, which is to be had with a database only;
# with none, sacct says that accounting is disabled, as on many small clusters.
#
# Installs nothing. Debian, Ubuntu: apt-get install -y --no-install-recommends slurm-wlm munge
# Exit codes: 0, 1 it does not start, 2 wrong usage, 77 SLURM is not installed.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"

usage() { sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

verb="${1:-}"; shift || usage
nodes=4 gpus=2 cpus=8 mem=4000 acct=shim extra=""
while [ $# -gt 0 ]; do
  [ $# -ge 2 ] || usage
  case "$1" in
    --nodes) nodes=$2;; --gpus) gpus=$2;; --cpus) cpus=$2;; --mem) mem=$2;;
    --acct) acct=$2; [[ $acct =~ ^(shim|none)$ ]] || usage;;
    --extra) extra+="$2"$'\n';;
    *) usage;;
  esac
  shift 2
done
dir="${SLURM_LOCAL_DIR:-/tmp/slurm-local-$(id -u)}"
port="${SLURM_LOCAL_PORT:-26817}"
export SLURM_CONF="$dir/etc/slurm.conf"

installed() {
  local missing=() name
  for name in munged munge slurmctld slurmd sbatch; do
    command -v "$name" >/dev/null || missing+=("$name")
  done
  [ ${#missing[@]} = 0 ] && return
  echo "SLURM is not installed (no ${missing[*]}):" \
       "apt-get install -y --no-install-recommends slurm-wlm munge" >&2
  exit 77
}

pid_in() { cat "$1" 2>/dev/null || true; } # a daemon that ends removes its file by itself

runs() { # pid; a zombie does not run, but outlives us where process 1 collects none
  local state
  state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/${1:-none}/status" 2>/dev/null) || return 1
  [ -n "$state" ] && [ "$state" != Z ] && [ "$state" != X ]
}

end() { # pid files: TERM to all, KILL to what is left 10 s later
  local file pid tries=200 pids=()
  for file in "$@"; do
    pid=$(pid_in "$file")
    ! runs "$pid" || { pids+=("$pid"); kill -TERM "$pid" 2>/dev/null || true; }
  done
  for pid in "${pids[@]}"; do
    while [ $tries -gt 0 ] && runs "$pid"; do sleep 0.05; tries=$((tries - 1)); done
    ! runs "$pid" || kill -KILL "$pid" 2>/dev/null || true
  done
}

wait_for() { # what, command...
  local what=$1 until=$((SECONDS + 20)); shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $until ] || { echo "no $what after 20 s; see $dir/log" >&2; return 1; }
    sleep 0.05
  done
}

all_idle() { [ "$(sinfo -h -N -p gpu -t idle -o %N | sort -u | wc -l)" = "$nodes" ]; }

settings() {
  cat <<C
ClusterName=local
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
# A requeued job may start once its old credential has run out: 120 s by default.
AuthInfo=socket=$dir/munge/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd.%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
MailProg=/bin/true
ReturnToService=2
# Nodes have the sizes written here, not the machine's.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1
SlurmdTimeout=10
KillWait=5
MinJobAge=86400
MaxArraySize=10001
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=1
PartitionName=low Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=grace Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=100 PreemptMode=OFF
C
  local node
  for node in $(seq "$nodes"); do
    echo "NodeName=n$node NodeHostname=$(hostname -s) NodeAddr=127.0.0.1" \
         "Port=$((port + 1 + node)) CPUs=$cpus RealMemory=$mem Gres=gpu:$gpus"
  done
  printf '%s' "$extra"
}

shim() {
  cat <<'C'
#!/usr/bin/env python3
"""`sacct [-n] [-X] -P -o FIELD,... -j ID[,ID...] ...`, told from the controller's memory."""
import argparse
import re
import subprocess

parser = argparse.ArgumentParser(allow_abbrev=False)
parser.add_argument("-n", "--noheader", action="store_true")
parser.add_argument("-X", "--allocations", action="store_true")
parser.add_argument("-P", "--parsable2", action="store_true")
parser.add_argument("-o", "--format", type=lambda text: text.split(","), required=True)
parser.add_argument("-j", "--jobs", action="append", required=True)
args = parser.parse_args()

if not args.noheader:
    print("|".join(args.format))
for job in ",".join(args.jobs).split(","):
    command = ["scontrol", "-o", "show", "job", job]
    for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
        record = dict(re.findall(r"(\S+?)=(\S*)", line))
        if "JobId" not in record:
            continue
        task = record.get("ArrayTaskId", "").split("%")[0]
        task = task if task.isdigit() else f"[{task}]"
        state, user = record["JobState"], re.sub(r"\D", "", record["UserId"].split("(")[-1])
        row = {
            "JobID": f"{record['ArrayJobId']}_{task}" if "ArrayJobId" in record else record["JobId"],
            "State": f"CANCELLED by {user}" if state == "CANCELLED" else state,
            "NodeList": record.get("NodeList") or "None assigned",
            "ExitCode": record["ExitCode"],
            "JobName": record["JobName"],
        }
        print("|".join(row[field] for field in args.format))
C
}

start() {
  installed
  stop
  rm -rf "${dir:?}"/{bin,dev,etc,run,spool,state}
  mkdir -p "$dir"/{bin,dev,etc,log,munge,run,spool,state}
  chmod 0755 "$dir" "$dir/munge" # munged refuses what others may write to
  local node gpu
  for ((gpu = 0; gpu < gpus; gpu++)); do
    ln -s /dev/null "$dir/dev/gpu$gpu"
    echo "Name=gpu File=$dir/dev/gpu$gpu"
  done > "$dir/etc/gres.conf"
  settings > "$SLURM_CONF"
  [ "$acct" = none ] || { shim > "$dir/bin/sacct"; chmod +x "$dir/bin/sacct"; }
  (umask 077; head -c 128 /dev/urandom > "$dir/munge/munge.key")

  munged --force --key-file="$dir/munge/munge.key" --socket="$dir/munge/munge.sock" \
    --pid-file="$dir/run/munged.pid" --log-file="$dir/log/munged.log" \
    --seed-file="$dir/munge/munge.seed" 2>> "$dir/log/munged.err"
  wait_for munged munge -n -S "$dir/munge/munge.sock"
  slurmctld -i -f "$SLURM_CONF"
  for ((node = 1; node <= nodes; node++)); do slurmd -N "n$node" -f "$SLURM_CONF"; done
  wait_for "$nodes idle nodes" all_idle
  echo "$nodes nodes are up; SLURM_CONF=$SLURM_CONF"
}

stop() {
  [ -d "$dir/run" ] || return 0
  local tries=160 file
  if runs "$(pid_in "$dir/run/slurmctld.pid")"; then
    scancel --quiet --user="$(id -un)" 2>/dev/null || true
    # A job that ignores SIGTERM gets SIGKILL after KillWait.
    while [ $tries -gt 0 ] && [ -n "$(squeue -h -t R,CG 2>/dev/null)" ]; do
      sleep 0.05; tries=$((tries - 1))
    done
  fi
  end "$dir"/run/slurmd.*.pid
  # What outlived its job still carries our SLURM_CONF and a job's number in its environment.
  while read -r file; do
    ! grep -qsz '^SLURM_JOB_ID=' "$file" || {
      file=${file#/proc/}; kill -KILL "${file%/environ}" 2>/dev/null || true; }
  done < <(grep -lsxz "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ)
  end "$dir/run/slurmctld.pid" "$dir/run/munged.pid"
}

case "$verb" in
  start) trap 'case $? in 0 | 77) ;; *) stop ;; esac' EXIT; start;;
  stop) stop;;
  env) echo "export SLURM_CONF=$SLURM_CONF PATH=$dir/bin:\$PATH";;
  *) usage;;
esac
