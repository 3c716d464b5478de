"""Puts into a system what pip cannot: units, scripts, configuration; and takes it away again."""
