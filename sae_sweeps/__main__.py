"""Entry point of `sae-sweeps` and `python -m sae_sweeps`: a companion command, or Hydra."""

import os
import sys
from pathlib import Path

from sae_sweeps.cli import commands, plan
from sae_sweeps.errors import one_line


def main() -> None:
    """Run the command line and exit with 0 (fine), 1 (refused) or 2 (some runs failed)."""
    # A console script has not the working folder on its path, where a user's own variants lie;
    # last, so that it shadows nothing.
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    first = arguments[0] if arguments else ""
    if first in commands.VERBS:
        return commands.main(arguments)
    if (planned := plan.asked_for(arguments)) is not None:
        return plan.main(planned)
    completing = os.environ.get("COMP_LINE") if first in ("-sc", "--shell-completion") else None
    if completing and not commands.completes_overrides(completing):
        return 0
    if first and "=" not in first and first[0] not in "-+~":
        sys.stderr.write(f"sae-sweeps: {one_line(commands.unknown(first))}\n")
        return 1
    from sae_sweeps.cli import app

    return app.run(arguments)


if __name__ == "__main__":
    main()
