"""What a config may say: options, groups, types, limits and rules; no torch."""
