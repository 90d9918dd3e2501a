"""What a launch writes before anything is trained, under the sweep's lock."""

import shutil
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from sae_sweeps.errors import ConfigError
from sae_sweeps.record import manifest
from sae_sweeps.record.plan import Plan, move_aside
from sae_sweeps.record.run import Run
from sae_sweeps.system import files

LOCK_LIMIT_S = 2.0
"""What a launch waits for the lock: another process may look for an instant whether it is held."""


class Writer:
    """Holds a sweep for one launch, and writes its manifest once."""

    def __init__(self, plan: Plan, packs: Sequence[list[Run]], launcher: dict[str, Any]) -> None:
        self.plan, self.launcher = plan, launcher
        named = enumerate([run.name for run in pack] for pack in packs)
        self.packs = [manifest.Pack(f"{plan.launch}-{i}", runs, None) for i, runs in named]
        self.path = plan.files.lock
        self.lock = None
        self._undo = ExitStack()

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Hold the sweep while the block runs; a folder that is not there yet is held later."""
        try:
            if self.path.exists() or not self.packs:
                with as_config_error():
                    self._acquire()
            yield
        finally:
            if self.lock is not None:
                self.lock.release()

    def begin(self) -> None:
        """Write the manifest, forget earlier failures and make room for runs, as planned."""
        names = {name for pack in self.packs for name in pack.runs}
        with as_config_error(), self._or_not_at_all():
            self._acquire()
            files_before = set(self.plan.files.packs.glob("*"))
            self._undo.callback(self._remove_packs_but, files_before)
            for old, new in move_aside(self.plan):
                self._undo.callback(new.rename, old)
            for name in names:
                self._remember(self.plan.files.run(name).failed).unlink(True)
            self._remember(self.plan.files.manifest)
            manifest.write(self.plan, self.packs, self.launcher)

    @contextmanager
    def _or_not_at_all(self) -> Generator[None, None, None]:
        try:
            yield
        except BaseException:
            with suppress(OSError):
                self.take_back()
            raise

    def submitted(self, jobs: Sequence[str]) -> None:
        """Write down the packs' jobs."""
        pairs = zip(self.packs, jobs, strict=True)
        self.packs = [manifest.Pack(pack.name, pack.runs, job) for pack, job in pairs]
        with as_config_error():
            manifest.write(self.plan, self.packs, self.launcher)

    def take_back(self) -> None:
        """Leave everything as it was before `begin`: the jobs were refused."""
        self._undo.close()

    def _remove_packs_but(self, before: set[Path]) -> None:
        for path in set(self.plan.files.packs.glob("*")) - before:
            path.unlink()

    def _remember(self, path: Path) -> Path:
        """Have `take_back` restore a file as it is now."""
        if path.exists():
            self._undo.callback(_restore, path, path.read_text(encoding="utf-8"))
        else:
            self._undo.callback(path.unlink, missing_ok=True)
        return path

    def _acquire(self) -> None:
        from filelock import FileLock, Timeout

        if self.lock is not None:
            return
        folder = self.plan.folder
        fresh = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path)
        try:
            lock.acquire(timeout=LOCK_LIMIT_S)
        except Timeout:
            text = f"{folder} is in use by another sae-sweeps"
            raise ConfigError(f"{text}: wait for it, or give another name.") from None
        self.lock = lock
        if manifest.next_launch(folder) != self.plan.launch:
            raise ConfigError(f"{folder} has just been extended by another sae-sweeps: try again.")
        if fresh:
            self._undo.callback(shutil.rmtree, folder, ignore_errors=True)


def _restore(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        files.write_text(path, text)


@contextmanager
def as_config_error() -> Generator[None, None, None]:
    """Word what a full or read-only disk answers."""
    try:
        yield
    except OSError as error:
        what = f" {error.filename}" if error.filename else ""
        raise ConfigError(f"cannot write{what}: {error.strerror or error}.") from error
