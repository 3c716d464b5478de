"""tests.structure: modules and their imports are read as they are, and docs/architecture.md shows them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.structure.drawing import BEGIN, END, arrows, counts, drawing, put, shape, taken
from tests.structure.modules import circles, read
from tests.structure.states import states
from xenbusd.bus.state import TRANSITIONS, Side, State, may_switch

ROOT = Path(__file__).parents[3]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A tree of two floors."""
    files = {
        "xenbusd/__init__.py": "",
        "xenbusd/api.py": "from xenbusd.bus import device\nfrom xenbusd.bus.device import Device\n",
        "xenbusd/bus/__init__.py": "",
        "xenbusd/bus/device.py": "import xenbusd.errors\nfrom .link import Link\n",
        "xenbusd/bus/link.py": "if TYPE_CHECKING:\n    from xenbusd.bus.device import Device\n",
        "xenbusd/errors.py": "import os\n",
        "drivers/xenbusd_echo/__init__.py": "",
        "drivers/xenbusd_echo/backend.py": "def f():\n    from xenbusd.api import Device\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_imports_of_every_kind_are_read(small: Path) -> None:
    """Absolute and relative ones, those within functions, and those for types alone; none of other packages."""
    imports = {name: set(module.imports) for name, module in read(small).items() if module.imports}
    assert imports == {
        "xenbusd.api": {"xenbusd.bus.device"},
        "xenbusd.bus.device": {"xenbusd.errors", "xenbusd.bus.link"},
        "xenbusd.bus.link": {"xenbusd.bus.device"},
        "xenbusd_echo.backend": {"xenbusd.api"},
    }


def test_circles_are_found(small: Path) -> None:
    """A circle of types is one; what leads into a circle is not part of it."""
    modules = read(small)
    found = circles({name: module.imports for name, module in modules.items()})
    assert found == [["xenbusd.bus.device", "xenbusd.bus.link"]]
    assert circles(arrows(modules)) == []
    assert "circles of modules         1\n" in counts(modules, [])


def test_a_room_stands_above_those_that_it_imports(small: Path) -> None:
    """Floor by floor, and without sizes the drawing has rooms and arrows alone."""
    rooms = [line.split() for line in shape(drawing(read(small)))]
    assert rooms == [["api", "bus"], ["bus", "errors"], ["errors"], ["backend"]]


def test_a_drawing_is_put_between_its_marks() -> None:
    """What stood there goes; the rest of the document stays."""
    document = f"before\n{BEGIN}old{END}\nafter\n"
    assert put(document, "new") == f"before\n{BEGIN}new{END}\nafter\n"
    assert taken(put(document, "new")) == "new"
    with pytest.raises(ValueError, match="marks"):
        put("no marks", "new")


def test_no_import_leads_back() -> None:
    """No module, and no room, imports itself by way of others."""
    modules = read(ROOT)
    assert circles({name: module.imports for name, module in modules.items()}) == []
    assert circles(arrows(modules)) == []


def test_the_drawing_in_the_architecture_is_the_tree_s() -> None:
    """Its rooms and its arrows. After a change of either, `make picture` puts it into docs/architecture.md."""
    shown = shape(taken((ROOT / "docs/architecture.md").read_text()))
    assert shown == shape(drawing(read(ROOT))), "the modules' imports have changed: make picture"


def test_the_table_of_states_in_the_guide_is_the_code_s() -> None:
    """After a change of TRANSITIONS, `make picture` puts it into docs/writing-a-driver.md."""
    assert taken((ROOT / "docs/writing-a-driver.md").read_text()) == states(), "TRANSITIONS has changed: make picture"


@pytest.mark.parametrize(
    ("side", "step"), [(Side.BACKEND, r"([A-Z]\w+) (\d)\b"), (Side.FRONTEND, r"\b(?=\d ([A-Z]\w+))(\d) ")]
)
def test_the_picture_of_a_life_in_the_guide_takes_legal_steps(side: Side, step: str) -> None:
    """Each end's states, from the top down, have their numbers, and each may follow the one above it; the first may
    follow the last, as the line about `online` says."""
    section = (ROOT / "docs/writing-a-driver.md").read_text().partition("## What is called when")[2]
    picture = section.partition("```text\n")[2].partition("```")[0]
    shown = [(title, State(int(number))) for title, number in re.findall(step, picture)]
    assert [title for title, _ in shown] == [state.title for _, state in shown]
    life = [state for _, state in shown]
    assert life[0] is State.INITIALISING
    assert life[-1] is State.CLOSED
    again = State.INIT_WAIT if side is Side.BACKEND else State.INITIALISING
    steps = list(zip(life, [*life[1:], again], strict=True))
    assert [(old, new) for old, new in steps if not may_switch(side, old, new)] == []
    assert len(steps) == 5


def test_each_step_stands_in_the_table_of_states() -> None:
    """One number for each step that may be taken."""
    cells = [cell for line in states().splitlines()[1:] for cell in line.split() if cell.isdecimal()]
    rows = [state for steps in TRANSITIONS.values() for state in steps]
    assert len(cells) == len(rows) + sum(len(to) for steps in TRANSITIONS.values() for to in steps.values())
