#!/usr/bin/env bash
# Made the sweeps of this folder, once, with the code of commit cacc1d6: what every later version must
# go on from. `make.sh CHECKOUT PYTHON` writes sweeps.tar.xz beside itself, as root, since it works in
# /srv, whose paths say nothing about anybody's machine.
set -euo pipefail
checkout=$1 python=$2 here=$(cd "$(dirname "$0")" && pwd)
[ "$(hostname)" = study ] || exec unshare --uts bash -c 'hostname study; exec "$0" "$@"' "$0" "$@"

rm -rf /srv/code /srv/study
mkdir -p /srv/study/bin
git clone -q "$checkout" /srv/code && git -C /srv/code checkout -q cacc1d6
cd /srv/study
export PYTHONPATH=/srv/code OMP_NUM_THREADS=1 WANDB_MODE=offline WANDB_ERROR_REPORTING=false
export WANDB_X_DISABLE_META=true WANDB_X_DISABLE_STATS=true WANDB_DISABLE_GIT=true WANDB_DISABLE_CODE=true
ours() { "$python" -m sae_sweeps "$@" hydra.launcher.progress=off; }

# Every command but its name, as the tests repeat it. `d_in` 16 keeps the weights small.
stream="stream.batch_tokens=256 stream.chunk_tokens=1024 stream.calibration_tokens=1024"
shared="$stream device=cpu d_sae=32 evaluation.tokens=1024 evaluation.ce_tokens=256"
shared="$shared target_model=synthetic target_model.d_in=16 target_model.features=24"
made="$shared training.tokens=8192"
six="name=six method=relu,gated,jumprelu,topk,mutual_choice,feature_choice k=2,4 seed=0 $made"
phases="name=phases method=relu,gated resampling=none,neuron_resampling fine_tune=none,scale k=3 tracking=off $made"
unnamed="method=topk k=2,3 allocator.k=5 training.lr=1e-3 training.warmup_tokens=512 tracking=off $made"
axes="allocator=mutual_choice aux_loss=aux_k,aux_zipf training.beta2=0.99,0.999 k=3 tracking=off $made"
hooks="name=hooks method=topk k=4 d_sae=16 tracking=off target_model.hook=blocks.1.hook_resid_post,blocks.2.hook_attn_out $stream device=cpu training.tokens=8192 evaluation.tokens=1024 evaluation.ce_tokens=256"
half="name=half method=relu,jumprelu,feature_choice aux_loss=aux_zipf fine_tune=none,scale k=4 tracking=off $shared training.tokens=300000"
frozen="name=frozen method=topk,gated k=2,4 tracking=off $made"

for line in "$six" "$phases" "$unnamed" "$axes" "$hooks"; do
  ours $line
done

# Ctrl-C after some seconds saves; what the runs would have come to is told by a copy that goes on.
ours $half & pid=$!
for _ in $(seq 600); do [ "$(cat outputs/half/runs/*/metrics.jsonl 2>/dev/null | wc -l)" -gt 60 ] && break; sleep 0.1; done
pkill -TERM -P $pid || kill -TERM $pid
wait $pid || true
ls outputs/half/runs/*/checkpoint
cp -r outputs half_before
ours $half
mkdir -p half_reference
for run in outputs/half/runs/*/; do
  cp "$run/checkpoint/weights.safetensors" "half_reference/$(basename "$run").safetensors"
done
rm -rf outputs/half && mv half_before/half outputs/half && rm -rf half_before

# A cluster that takes jobs and never starts one.
printf '#!/bin/sh\necho Submitted batch job 4242\n' >bin/sbatch
printf '#!/bin/sh\nexit 0\n' >bin/squeue
chmod +x bin/*
PATH="$PWD/bin:$PATH" "$python" -m sae_sweeps $frozen hydra/launcher=slurm hydra.launcher.max_runs_per_pack=2 hydra.launcher.gpus=0
rm -rf bin
find outputs -name '*.pkl' -delete -o -name '*.sh' -delete -o -name '*.lock' -delete
find outputs \( -name report.html -o -name pareto.png -o -name 'debug*' \) -delete
rm -rf outputs/*/wandb/.cache outputs/*/wandb/.artifact outputs/*/wandb/latest-run
find outputs -path '*wandb*' -type l -delete
find outputs -path '*/wandb/*/files/*' -delete
find outputs -path '*/wandb/*/logs' -prune -exec rm -rf {} +

"$python" - <<PY
import json, pathlib
for path in pathlib.Path("outputs").rglob("*.json"):
    if path.parent.name in ("packs",) or path.name == "sweep.json":
        found = json.loads(path.read_text())
        nodes = [found, *(found.get("earlier", []) if isinstance(found, dict) else [])]
        for node in nodes:
            if isinstance(node, dict) and "search_path" in node:
                node["search_path"] = ["/srv/study"]
        path.write_text(json.dumps(found, indent=1) + "\n")
lines = {"six": """$six""", "phases": """$phases""", "unnamed": """$unnamed""", "axes": """$axes""", "hooks": """$hooks""", "half": """$half""", "frozen": """$frozen"""}
pathlib.Path("commands.json").write_text(json.dumps({k: v.split() for k, v in lines.items()}, indent=1) + "\n")
PY
tar --sort=name --owner=0 --group=0 --mtime=2026-11-28 -cJf "$here/sweeps.tar.xz" commands.json half_reference outputs
ls -la "$here/sweeps.tar.xz"
