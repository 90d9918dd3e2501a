"""Lines for the user, whose terminal may be gone by now, and obeys none of them."""

import os
import sys

from sae_sweeps.errors import one_line, visible


def write_line(text: str, error: bool = False) -> None:
    """Write a line to stdout or stderr; where nobody reads any more, further ones go nowhere.

    Else the end of `| tee`, or of a terminal, would count as the failure of a run.
    """
    stream = sys.stderr if error else sys.stdout
    try:
        stream.write(f"{visible(text)}\n")
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def complain(text: str) -> None:
    """Write one line about something wrong."""
    write_line(f"sae-sweeps: {one_line(text)}", error=True)
