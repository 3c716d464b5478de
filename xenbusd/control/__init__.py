"""The control socket: gives xenbusctl, and other processes of the daemon, what only a running daemon knows.

`protocol` is the language, without I/O; `server` speaks it for a `provider`, `client` asks.
"""
