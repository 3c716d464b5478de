"""xenbusd.toolstack: its names, each from the module that has it, and no module before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from xenbusd import toolstack


def test_every_name_is_there() -> None:
    """Every name in `__all__` can be imported, and is documented under that name in its module."""
    assert all(getattr(toolstack, name) is not None for name in toolstack.__all__)
    assert sorted(toolstack.__all__) == sorted(name for names in toolstack._HOMES.values() for name in names)


def test_no_other_name_is_there() -> None:
    """A name that is misspelt is an AttributeError, as in any module."""
    with pytest.raises(AttributeError, match=r"'xenbusd\.toolstack' has no attribute 'atach'"):
        toolstack.atach  # noqa: B018


def test_a_deadline_loads_no_store_client() -> None:
    """The default of a command's option costs no import of asyncio."""
    program = "import sys; from xenbusd import toolstack; toolstack.ATTACH_S; print('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"
