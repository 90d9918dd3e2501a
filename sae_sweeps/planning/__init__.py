"""What a launch will take, told before it starts: memory, time, disk."""
