"""What a GPU is asked: a module for each part, which prints its figures, a JSON object a line."""
