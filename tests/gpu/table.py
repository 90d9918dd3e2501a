"""Prints what a step of each method asks of a GPU, a JSON object a line."""

import json
import sys

from .runs import METHODS
from .sizes import SIZES
from .steps import fakeable, row


def main() -> None:
    """`table DEAD_SHARE METHOD,... [OPTION=VALUE] ... [+ METHOD,... [OPTION=VALUE] ...] ...`

    The share of latents that are dead; then methods and options, of one table or several.
    """
    share, tables = float(sys.argv[1]), " ".join(sys.argv[2:]).split(" + ")
    for size in SIZES:
        fakeable(dead=int(share * size.d_sae))
        for methods, *words in map(str.split, tables):
            for method in methods.split(","):
                found = row(size, [f"method={method}", *METHODS[method], *words])
                sys.stdout.write(json.dumps({"method": method, **found}) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
