"""Where packs run: the sweeper that expands a command, the launcher and its display."""
