"""One .npy file of token rows that grows at its end, and can be cut back to what was committed."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sae_sweeps.data import token_cache

FLUSH_IDS = 2**20
"""Ids that wait in memory until they are written."""
State = dict[str, Any]
START: State = {"rows": 0, "rest": [], "bytes": 0}
"""What `commit` tells of a matrix that has no row yet."""


class Matrix:
    """Rows of BOS and `seq` - 1 ids; ids that do not fill a row yet wait for more.

    NumPy leaves room in an .npy header for the number of rows to grow, so it is rewritten in place.
    """

    def __init__(
        self,
        path: Path,
        dtype: type[np.uint16] | type[np.uint32],
        *,
        seq: int,
        bos: int,
        wanted: int | None,
        state: State,
    ) -> None:
        """Open the file as it was when it was committed with `state`; the rest is cut off.

        Args:
            wanted: rows after which nothing more is taken; None for as many as come.
        """
        self.path, self.dtype, self.width, self.bos = path, np.dtype(dtype), seq - 1, bos
        self.wanted = wanted
        self.written: int = state["rows"]
        self.waiting: list[NDArray[Any]] = [np.array(state["rest"], self.dtype)]
        self.waits = len(state["rest"])
        self.file = path.open("r+b" if path.is_file() else "w+b")
        self._write_header()
        row_bytes = seq * self.dtype.itemsize
        self.file.truncate(self.file.seek(self.file.tell() + self.written * row_bytes))

    @property
    def rows(self) -> int:
        """Whole rows there are, those that wait included."""
        rows = self.written + self.waits // self.width
        return rows if self.wanted is None else min(rows, self.wanted)

    @property
    def tokens(self) -> int:
        """Tokens of whole rows, their first BOS not counted."""
        return self.rows * self.width

    @property
    def full(self) -> bool:
        """Whether there are as many rows as wanted."""
        return self.rows == self.wanted

    def add(self, ids: list[int]) -> None:
        """Lay ids at the end; what is beyond the rows wanted is left out."""
        if self.full:
            return
        self.waiting.append(np.array(ids, self.dtype))
        self.waits += len(ids)
        if self.waits >= FLUSH_IDS:
            self._flush()

    def _flush(self) -> None:
        """Write the whole rows that wait."""
        ids = np.concatenate(self.waiting)
        new = self.rows - self.written
        text = ids[: new * self.width].reshape(new, self.width)
        self.file.write(np.pad(text, ((0, 0), (1, 0)), constant_values=self.bos).tobytes())
        self.written += new
        rest = ids[:0] if self.written == self.wanted else ids[new * self.width :]
        self.waiting, self.waits = [rest], len(rest)

    def commit(self) -> State:
        """Write to disk what there is; a matrix opened with the answer goes on from here."""
        self._flush()
        self.file.flush()
        os.fsync(self.file.fileno())
        rest = np.concatenate(self.waiting).tolist()
        return {"rows": self.written, "rest": rest, "bytes": self.file.tell()}

    def finish(self) -> dict[str, Any]:
        """Make a committed matrix an .npy file; its size and its hash."""
        self._write_header()
        self.file.flush()
        os.fsync(self.file.fileno())
        size = {"rows": self.rows, "tokens": self.tokens}
        return size | {"sha256": token_cache.sha256(self.path)}

    def _write_header(self) -> None:
        self.file.seek(0)
        shape = (self.written, self.width + 1)
        header = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)
