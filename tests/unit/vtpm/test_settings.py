"""The table [drivers.vtpm], and uuids."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from xenbusd.errors import UsageError
from xenbusd_vtpm import settings
from xenbusd_vtpm.settings import OPTIONS, parse_settings, parse_uuid

UUID = "01234567-89ab-cdef-0123-456789abcdef"


def test_the_readme_lists_every_option() -> None:
    """Each key of the table, with its default where it has a simple one."""
    readme = (Path(settings.__file__).parent / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (?:backend|frontend) \| .* \| (.*) \|$", readme, re.M))
    assert list(rows) == list(OPTIONS)
    assert (rows["version"], rows["vtpmx"]) == (OPTIONS["version"].default, str(OPTIONS["vtpmx"].default).lower())


def test_uuids() -> None:
    """Upper case is accepted, and turned into lower case."""
    assert parse_uuid(UUID.upper()) == UUID


@pytest.mark.parametrize(
    "text", ["", "..", "../" + UUID, UUID + "/..", UUID + "\n", UUID[:-1], UUID.replace("-", ""), "٠" * 36, UUID + "\0"]
)
def test_texts_that_are_not_uuids(text: str) -> None:
    """Nothing that could lead out of the state folder is a uuid."""
    with pytest.raises(UsageError, match="is no uuid"):
        parse_uuid(text)


def test_an_empty_table() -> None:
    """Everything has a default."""
    found = parse_settings({}, "/run/somewhere")
    assert (found.state_dir, found.version, found.key_file) == ("/run/somewhere", "2.0", None)


def test_a_full_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend reads each of its keys, and accepts the agent's."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    options = {
        "state_dir": "/srv/tpms",
        "version": "1.2",
        "versions": {UUID.upper(): "2.0"},
        "key_file": "/etc/key",
        "user": "root",
        "vtpmx": False,
    }
    found = parse_settings(options, "/run")
    assert (found.state_dir, found.version, found.versions) == ("/srv/tpms", "1.2", {UUID: "2.0"})
    assert (found.key_file, found.user) == ("/etc/key", "root")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"statedir": "/srv"}, r"statedir: unknown key; did you mean state_dir\?"),
        ({"state_dir": "srv"}, "state_dir: 'srv' is not an absolute path"),
        ({"key_file": 5}, "key_file: 5 is not an absolute path"),
        ({"version": 2.0}, "version: 2.0 is none of 2.0, 1.2; in a file, write it in quotes"),
        ({"versions": "2.0"}, r"write a table \[drivers.vtpm.versions\]"),
        ({"versions": {"x": "2.0"}}, "is no uuid"),
        (
            {"speed": 1},
            r"^\[drivers.vtpm\] speed: unknown key; the keys are state_dir, version, versions, key_file, user",
        ),
        ({"user": 5}, "user: 5 is no user's name"),
        ({"user": "nobody-of-that-name"}, "there is no user 'nobody-of-that-name'"),
    ],
)
def test_mistakes(options: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is named with its key."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UsageError, match=said):
        parse_settings(options, "/run")


def test_only_root_chooses_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root can run swtpm as another user: by default as tss, if there is such a user."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert parse_settings({"user": "root"}, "/run").user is None
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(settings, "USER", "root")
    assert parse_settings({}, "/run").user == "root"
    monkeypatch.setattr(settings, "USER", "nobody-of-that-name")
    assert parse_settings({}, "/run").user is None
