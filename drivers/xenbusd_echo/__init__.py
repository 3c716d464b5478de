"""The template of a split driver: a frontend sends lines, a backend sends them back."""
