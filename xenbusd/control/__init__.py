"""The control socket: what only a running daemon knows, for xenbusctl."""
