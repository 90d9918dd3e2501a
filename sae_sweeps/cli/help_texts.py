"""What the companion commands say of themselves; the first line sums each one up."""

PLAN_HELP = """\
Tell what a command would do and what it would take: packs of runs that share a pass, the memory of
each, forward passes, disk, time. Nothing is written, submitted or downloaded.

Put `plan` in front of the command, as in sae-sweeps plan +sweep=pareto k=8,16; or add --dry-run.

Times of a launch on this machine come from a few steps of each kind of run; those of SLURM jobs
from the rates of the GPU that the launcher's options name, or of an H100. --gpu names another.
They are estimates: nothing is known yet of latents that die, nor of other users of a machine.

--json writes one object with the keys name, folder, points, to_train, to_measure, finished,
under_way, packs (each with runs, where, pass_tokens, memory_bytes, seconds), at_once, room_bytes,
alone_tokens, disk (weights, checkpoints, token_cache, free: bytes), seconds, device, device_hours
and basis. What is not known is null."""

STATUS_HELP = """\
Tell how far each sweep is: one row a run, then counts and what to do next.

States: done; running; pending: waits for its turn; preempted: its job was stopped and waits to go
on; failed; lost: killed, cancelled or never started, and nobody works on it.

--json writes a list of sweeps, each with the keys name, folder, over (nothing will happen by
itself any more), problem (why SLURM could not be asked, or empty), counts (by state) and runs, each
with name, label, k, seed, state, tokens, total_tokens, tokens_per_s, l0, fvu, job, node, reason
and metrics. What is not known is null."""

CANCEL_HELP = """\
End what each sweep still has at work: its SLURM jobs, waiting or running, and the command that
trains it on this machine. Checkpoints are kept.

--json writes a list of sweeps, each with the keys name, folder, jobs (those cancelled) and pid
(the process told to stop, or null)."""

RETRY_HELP = """\
Launch again the runs of each sweep that failed or were lost, from their checkpoints.

They are launched as they were before, here or on SLURM, with the options of the sweep's manifest.
To change anything, repeat the command that made the sweep with other options.

A folder may be somebody else's. So modules of a user's own are taken from where you are now only,
paths that are relative must begin where they did, and a launcher's shell commands are refused.
--trust does as the folder says in all of that: it runs code of its author's choice."""

REPORT_HELP = """\
Draw the report of each sweep again.

Prints the results, marked by how each setting's FVU stands beside the best other curve's at its L0:
★ lower by more than the margin, ≈ a tie within it, ☆ no other curve near that L0. The margin is
two standard errors over seeds, with one seed 1% at least. Beside the mark: dead latents.

Writes pareto.csv, pareto.png and report.html into its folder, where settings stand alike. Of
several sweeps one more page, report.html in the folder that holds them all, shows them side by
side."""

SYNC_HELP = """\
Upload to W&B what each sweep logged offline.

Each row arrives once, however often this is repeated or interrupted. Runs that are at work are left
for later. In the end the server is asked how many rows it has of each run.

Needs an API key (`wandb login`, or WANDB_API_KEY); WANDB_BASE_URL names another server."""

DASHBOARD_HELP = """\
Make each sweep's W&B workspace, or renew it, and tell its address.

It shows the sweep's runs alone: L0 against FVU, recovered cross-entropy and dead features, with a
line of the best up to each L0; the report's picture; training curves. Needs pip install
'sae-sweeps[dashboards]' and an API key."""
