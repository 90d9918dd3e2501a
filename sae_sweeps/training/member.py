"""One run of a pack: its SAE in training, its files, its tracker."""

import copy
import json
import logging
import shutil
import signal
import time
from contextlib import suppress
from typing import IO, Any

import torch
from filelock import FileLock, Timeout
from jaxtyping import Float
from torch import Tensor

from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.signature import build
from sae_sweeps.engine import gemm
from sae_sweeps.engine.listing import max_listed
from sae_sweeps.errors import ConfigError, one_line, without_frames
from sae_sweeps.interfaces import Architecture, FineTune, Measurement
from sae_sweeps.record import checkpoint
from sae_sweeps.record.identity import identity
from sae_sweeps.record.result import Failure, Result, Row
from sae_sweeps.record.run import Run
from sae_sweeps.stream.live import Stream
from sae_sweeps.system import interrupt
from sae_sweeps.system.files import LogFile, digest, write_text
from sae_sweeps.tracking.interface import TrackedRun, Tracking
from sae_sweeps.training import results, snapshot
from sae_sweeps.training.clock import Clock
from sae_sweeps.training.evaluation import evaluate
from sae_sweeps.training.fine_tuner import FineTuner
from sae_sweeps.training.listener import Listener
from sae_sweeps.training.measurement import with_figures
from sae_sweeps.training.saving import Saving
from sae_sweeps.training.trainer import new_trainer

logger = logging.getLogger(__name__)

LOCK_LIMIT_S = 60.0
"""What a run waits for an attempt that a scheduler has ended but that is still leaving."""
LOOK_EVERY_S = 0.5
"""How often a waiting run looks whether a signal came."""
CPU = torch.device("cpu")


def new_sae(config: RunConfig, d_in: int, device: torch.device = CPU) -> Architecture:
    """The SAE that a run's config describes, weights yet to be drawn, to be moved to `device`."""
    d_sae, nodes = config.d_sae, config.nodes
    sae: Architecture = build(nodes["architecture"], d_in, d_sae, build(nodes["allocator"], d_sae))
    sae.max_listed = max_listed(config.engine, device.type, d_sae)
    return sae


class Member:
    """Trains one run chunk by chunk; a failure ends this run alone.

    Building it writes nothing. `open` goes on where an interrupted attempt left its last
    checkpoint; without one it starts afresh, and replaces what is there.
    """

    def __init__(
        self, index: int, run: Run, stream: Stream, measurement: Measurement, display: Listener
    ) -> None:
        self.index, self.run, self.stream, self.display = index, run, stream, display
        self.measurement = measurement
        config, device = run.config, stream.target.device
        sae = new_sae(config, stream.target.d_in, device)
        sae.initialise(torch.Generator().manual_seed(config.seed), stream.mean.cpu())
        self.trainer = new_trainer(config, sae.to(device))
        self.fine_tune: FineTune = build(
            config.nodes["fine_tune"], stream.target.d_in, config.d_sae
        )
        self.fine_tune.to(device)
        if self.fine_tune.whole_contexts and not stream.target.has_loss:
            raise ConfigError("fine_tune needs a target model, whose predictions it learns from.")
        self.training, batch = self.trainer.given, stream.given.batch_tokens
        self.main_tokens = self.training.tokens - self.training.tokens % batch
        self.total_tokens = self.main_tokens + self.fine_tune.tokens - self.fine_tune.tokens % batch
        stream.require(max(self.training.tokens, self.total_tokens))
        self.fine_tuner = FineTuner(self.trainer, self.fine_tune, stream)
        self.outcome: Result | Exception | None = None
        self.last_row: dict[str, float] = {}
        self.row_tokens = 0
        self.files = run.files
        self.lock = FileLock(self.files.lock)
        self.log = logging.getLogger(f"sae_sweeps.runs.{run.name}")
        self.saving = Saving(self.files, config.checkpoint_minutes, device, self.log)

    def open(self, tracking: Tracking) -> None:
        """Start the run's log, metrics and tracker, unless another process trains this run."""
        try:
            self.files.path.mkdir(parents=True, exist_ok=True)
            self._acquire()
            self._open(tracking)
        except (Timeout, OSError) as error:
            self.outcome = error
            if isinstance(error, Timeout):
                self.outcome = RuntimeError("another process trains this run")
            self.display.finished(self.index, "failed")
            self.lock.release()

    def _acquire(self) -> None:
        """Wait for the run's lock; raises Timeout, or Interrupted for a signal meanwhile."""
        until = time.monotonic() + LOCK_LIMIT_S
        while True:
            interrupt.check()
            try:
                self.lock.acquire(timeout=min(LOOK_EVERY_S, LOCK_LIMIT_S))
                return
            except Timeout:
                if time.monotonic() >= until:
                    raise

    def _open(self, tracking: Tracking) -> None:
        files = self.files
        files.failed.unlink(missing_ok=True)
        shutil.rmtree(files.sae, ignore_errors=True)
        complaints = list[str]()
        saved = checkpoint.latest(files, self._identity(), complaints.append)
        self.handler = LogFile(files.log, mode="a" if saved else "w")
        self.handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.log.addHandler(self.handler)
        self.log.setLevel(logging.INFO)
        self.log.propagate = False
        for text in complaints:
            self.log.warning("%s", text)
        self.clock = Clock()
        self.row_time = time.monotonic()
        self.saving.begin()
        if saved:
            self._resume(saved)
        else:
            checkpoint.clear(files)
            write_text(files.metrics, "")
        # After the rows past the checkpoint are gone: the tracker catches up with those left.
        self.tracked: TrackedRun = tracking.open(self.run)
        self.rows: IO[str] = files.metrics.open("a", buffering=1)
        self.log.info("training %s on %d tokens", self.run.label, self.total_tokens)
        self.log.info("computing with %s", json.dumps(self._computed()))
        self.log.info("held-out tokens left out: %d", self.stream.left_out)
        for hint in self.stream.hints:
            self.log.warning("%s", hint)

    def _identity(self) -> str:
        """The run's identity, and the text's, whose files may have changed under their name."""
        return digest(
            [identity(self.run.config), self.stream.target.description.get("tokens_sha256")]
        )

    def _computed(self) -> dict[str, Any]:
        """What else than options rules a run's numbers, or their rounding."""
        target = self.stream.target
        own = target.device.type
        return {
            "device": own,
            "model_dtype": target.description.get("model_dtype"),
            "gemm": gemm.backend(target.device),
            "precision": "bfloat16" if self.trainer.bfloat16 else "float32",
            "sparse_up_to": self.trainer.sae.max_listed,
            # With other instructions a CPU adds in another order.
            "cpu": torch.backends.cpu.get_cpu_capability() if own == "cpu" else None,
        }

    def _resume(self, saved: checkpoint.Checkpoint) -> None:
        """Take the state over, and cut the rows that came after it."""
        snapshot.restore(self.trainer, self.fine_tuner, saved.tensors, saved.state)
        self.clock.resume(saved.state)
        self.row_tokens = self.saving.saved_tokens = self.trainer.tokens
        self.last_row = saved.state["last_row"]
        self.files.cut_rows(saved.tokens)
        self.display.resumed(self.index, saved.tokens)
        self.log.info("resumed at %d tokens", saved.tokens)
        before, now = saved.state["computed"], self._computed()
        # Checkpoints of earlier versions do not tell all of it.
        if any(now[name] != value for name, value in before.items()):
            text = "computed with %s before, now with %s: weights are not what they would be"
            self.log.warning(text, before, now)

    def advance(self, chunk: Float[Tensor, "chunk d_in"], start: int) -> None:
        """Train on one chunk, whose first token is number `start`; at the last one, finish."""
        try:
            for batch in chunk.split(self.stream.given.batch_tokens):
                interrupt.check()
                # What a checkpoint already has is passed over.
                if start >= self.trainer.tokens and not self.trained:
                    with interrupt.postponed():  # half a step could not be saved
                        self._train(batch)
                    self.saving.if_due(self._checkpoint)
                start += len(batch)
            self.finish_if_trained()
        except Exception as error:
            self.fail(error)
            without_frames(error)  # they hold a whole step

    @property
    def trained(self) -> bool:
        """Whether only the evaluation is left."""
        return self.trainer.tokens >= self.total_tokens

    def finish_if_trained(self) -> None:
        """Evaluate and write the result, if training is over."""
        try:
            if self.trained:
                self._finish()
        except Exception as error:
            self.fail(error)
            without_frames(error)  # they hold a whole step

    def leave(self) -> None:
        """Save what a signal interrupts, so that another attempt goes on from here."""
        try:
            self.saving.settle()
            if self.trainer.tokens > self.saving.saved_tokens:
                self.saving.now(self._checkpoint())
        except Exception as error:
            self.log.error("no checkpoint could be written", exc_info=error)
        signum, seconds = interrupt.received() or (0, 0.0)
        name = signal.Signals(signum).name if signum else "an interruption"
        tokens = self.trainer.tokens
        self.log.info("left at %d tokens, %.2f s after %s", tokens, seconds, name)
        self.tracked.preempt()
        self.close_files()

    def _checkpoint(self) -> checkpoint.Checkpoint:
        tensors, numbers = snapshot.take(self.trainer, self.fine_tuner)
        state = numbers | self.clock.read() | {"last_row": self.last_row}
        state["computed"] = self._computed()
        self.rows.flush()
        return checkpoint.Checkpoint(self._identity(), self.trainer.tokens, tensors, state)

    def fail(self, error: Exception) -> None:
        """Record the traceback in the run's log and one line in `failed.json`."""
        self.saving.settle()
        self.log.error("failed", exc_info=error)
        line = one_line(f"{type(error).__name__}: {error}")
        try:
            self.files.fail(Failure(line, self.trainer.tokens))
        except OSError as disk:  # a full one may be why the run failed; the others go on
            logger.warning("%s: its failure is not written: %s", self.run.name, disk)
        self._close(error, None)

    def _train(self, batch: Float[Tensor, "batch d_in"]) -> None:
        before, after = self.trainer.tokens, self.trainer.tokens + len(batch)
        every = self.training.log_every_tokens
        ends = self.main_tokens, self.total_tokens
        logged = after // every > before // every or after in ends
        phase = self.trainer if before < self.main_tokens else self.fine_tuner
        figures = phase.step(batch, wanted=logged)
        self.display.advance(self.index, len(batch))
        if logged:
            self._log(figures)

    def _log(self, figures: dict[str, Tensor]) -> None:
        tokens, now = self.trainer.tokens, time.monotonic()
        row = {name: value.item() for name, value in figures.items()}
        row |= self.trainer.sae.diagnostics()
        row["perf/tokens_per_s"] = (tokens - self.row_tokens) / max(now - self.row_time, 1e-9)
        self.row_tokens, self.row_time, self.last_row = tokens, now, row
        self.rows.write(f"{Row(tokens, row).line}\n")
        self.tracked.log(Row(tokens, row))
        self.display.metrics(self.index, {"l0": row["train/l0"], "fvu": row["train/fvu"]})
        if not torch.isfinite(figures["train/loss"]):
            raise FloatingPointError(f"the loss is {row['train/loss']} after {tokens} tokens")

    def _finish(self) -> None:
        time_taken = self.clock.read()
        # A copy: an interrupted evaluation leaves the state that training ended in.
        sae, target = copy.deepcopy(self.trainer.sae), self.stream.target
        self.fine_tune.fold(sae)
        evaluation = evaluate(sae, self.stream, self.run.config.evaluation)
        result = Result(
            run=self.run.name,
            sweep=self.run.sweep,
            label=self.run.label,
            choices=self.run.choices,
            config=self.run.config,
            tokens=self.trainer.tokens,
            **vars(evaluation),
            train={
                "dead_frac": self.last_row["features/dead_frac"],
                "dead_window_tokens": self.training.dead_window_tokens,
                "l0": self.last_row["train/l0"],
                "fvu": self.last_row["train/fvu"],
            },
            cost={
                **time_taken,
                "tokens_per_s": self.trainer.tokens / time_taken["seconds"],
                "threads": torch.get_num_threads(),
                **self._computed(),
                "device": str(target.device),
            },
        )
        self.stream.unscale(sae)
        results.write_weights(self.run, sae)
        result = self._with_further_figures(result, sae)
        if not results.write_saelens(self.run, sae, target, result.metrics):
            self.log.warning("SAELens has no layout for %s: sae/ is not written", self.run.label)
        self.log.info("finished: %s", json.dumps(result.metrics))
        self.saving.settle()
        self.rows.flush()
        self.files.finish(result)
        checkpoint.clear(self.files)
        self._close(result, result)

    def _with_further_figures(self, result: Result, sae: Architecture) -> Result:
        """Add those of `measure`; where they fail, a retry measures again and does not train."""
        try:
            return with_figures(result, self.measurement, sae, self.stream)
        except Exception:
            with suppress(OSError):
                self.saving.now(self._checkpoint())
            raise

    def _close(self, outcome: Result | Exception, result: Result | None) -> None:
        self.outcome = outcome
        del self.trainer, self.fine_tuner, self.fine_tune  # others have use for the memory
        self.tracked.finish(result)
        self.display.finished(self.index, "finished" if result else "failed")
        self.close_files()

    def close_files(self) -> None:
        """Close what `open` opened; a second time does nothing."""
        self.log.removeHandler(self.handler)
        self.handler.close()
        with suppress(OSError):  # a full disk; what matters is written, or reported, by now
            self.rows.close()
        self.lock.release()
