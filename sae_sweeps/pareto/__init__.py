"""What a sweep shows: its runs as points, their frontiers, and the report."""
