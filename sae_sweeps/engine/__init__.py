"""The engine: sparse products, exact selection, and what is computed with them."""
