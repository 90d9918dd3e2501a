"""Prints what a step of each method asks of a GPU, a JSON object a line."""

import json
import sys

from .runs import METHODS
from .sizes import SIZES
from .steps import fakeable, row


def main() -> None:
    """`table DEAD_SHARE METHOD,... [OPTION=VALUE] ...`: the share of latents that are dead."""
    share, methods, words = float(sys.argv[1]), sys.argv[2].split(","), sys.argv[3:]
    for size in SIZES:
        fakeable(dead=int(share * size.d_sae))
        for method in methods:
            found = row(size, [f"method={method}", *METHODS[method], *words])
            sys.stdout.write(json.dumps({"method": method, **found}) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
