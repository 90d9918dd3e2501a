"""`sae-sweeps` in a fork of a process that has imported W&B."""

from pathlib import Path

from wandb.sdk.data_types import _private

from sae_sweeps import __main__


def main() -> None:
    """Run the command; the first fork to end has removed a folder that all of them share."""
    Path(_private.MEDIA_TMP.name).mkdir(exist_ok=True)
    __main__.main()
