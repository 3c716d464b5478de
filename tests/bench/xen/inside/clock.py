"""Dom0's processor time, as the hypervisor counts it: every cycle that it ran, whoever in it used them."""

from __future__ import annotations

import sys
from typing import Any

BINDINGS = "/usr/lib/xen-4.17/lib/python"
"""Where Debian puts Xen's own Python modules."""


class Dom0Clock:
    """One reading of Xen's accounts. `xl list` shows the same, in tenths of a second, and costs a process."""

    def __init__(self) -> None:
        sys.path.append(BINDINGS)
        from xen.lowlevel import xc

        self._xc: Any = xc.xc()

    def cpu_s(self) -> float:
        """Seconds so far."""
        nanoseconds: int = self._xc.domain_getinfo(0, 1)[0]["cpu_time"]
        return nanoseconds / 1e9
