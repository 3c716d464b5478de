"""The place of the files that we ship beside our Python code: hotplug scripts, and files for systemd and its kin.

In a source tree, and so for an editable installation, they are folders beside the package. In a wheel they are inside
it (pyproject.toml, force-include), because pip cannot put files into /etc; `xenbusd install` does that.
"""

from __future__ import annotations

import os

_PACKAGE = os.path.dirname(os.path.abspath(__file__))


def shipped_dir(name: str) -> str:
    """Return the absolute path of a folder of shipped files.

    Args:
        name: "hotplug" or "systemd".
    """
    inside = os.path.join(_PACKAGE, "_shipped", name)
    return inside if os.path.isdir(inside) else os.path.join(os.path.dirname(_PACKAGE), name)
