"""The structure of a source tree: its modules, the imports between them, and a drawing of both."""
