"""The control socket: what only a running daemon knows, for xenbusctl and for other processes of the daemon.

`protocol` is the language, without I/O; `server` speaks it for a `provider`, `client` asks.
"""
