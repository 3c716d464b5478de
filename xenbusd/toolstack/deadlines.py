"""How long a toolstack waits, in seconds, unless it is asked for something else. Pure."""

from __future__ import annotations

ATTACH_S = 30.0
"""For both ends to be Connected."""

DETACH_S = 10.0
"""For the backend to be Closed, as long as libxl waits."""

SCRIPT_S = 45.0
"""For the `remove` script of another daemon, whose own limit is 40 s."""

PAUSE_S = 30.0
"""For the requests in flight to be done."""
