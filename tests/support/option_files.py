"""Hydra's option files, parsed once per process: it reads thirty of them three times a command."""

import pickle
from pathlib import Path

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult

_read = ConfigRepository.load_config
_kept: dict[tuple[str, Path, int, int], bytes] = {}


def load_config(self: ConfigRepository, config_path: str) -> ConfigResult | None:
    """In place of `ConfigRepository.load_config`: files that are as they were are copied."""
    source = self._find_object_source(  # pyright: ignore[reportPrivateUsage]
        config_path, ObjectType.CONFIG
    )
    path = Path(source.path, f"{config_path.removesuffix('.yaml')}.yaml") if source else Path()
    if not source or not path.is_file():
        return _read(self, config_path)
    state = path.stat()
    key = (source.provider, path, state.st_mtime_ns, state.st_size)
    if key not in _kept:
        _kept[key] = pickle.dumps(_read(self, config_path))
    return pickle.loads(_kept[key])


def load_all(folder: Path) -> None:
    """Parse a folder's option files, as those of the main search path, for the forks to come."""
    repository = object.__new__(ConfigRepository)  # which would look for plugins, once for all
    repository.sources = [FileConfigSource("main", f"file://{folder}")]
    for path in folder.rglob("*.yaml"):
        load_config(repository, path.relative_to(folder).as_posix())
