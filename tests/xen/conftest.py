"""Tests of this folder run in dom0 of a real Xen host that is booted for them; `boots` says how often, and for which.

Outside, a test here is only a name: the hosts are booted, a pytest in each dom0 runs the tests of that boot, and
what it reported of each is reported here, tracebacks and all. Inside, they are ordinary tests. Those that are marked
`outside` are ordinary tests outside.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.xen import boots, build, host
from tests.xen.dom0 import Daemon, daemon, run

HERE = Path(__file__).parent
MODE = os.environ.get("XENBUSD_XEN", "")
INSIDE = MODE == "inside"
OUT = Path("/mnt/out")
"""Inside: the folder that the machine outside sees."""

STORES = ("oxenstored", "xenstored")
"""Xen's two: Debian's default, and the one in C."""

AT_ONCE = min(2, os.cpu_count() or 1)
"""Boots that run side by side, each on about one processor."""

_boots: dict[str, Future[host.Boot]] = {}
"""By the id of each test, the boot that runs it."""


def _why_not() -> str | None:
    if INSIDE:
        return None
    if MODE != "1":
        return "make xen-test boots a real Xen host for this"
    return build.lacking()


def _ours(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    return (item for item in items if item.path.is_relative_to(HERE))


def _inside(item: pytest.Item) -> bool:
    """Whether a test is to run in dom0."""
    return item.path.is_relative_to(HERE) and item.get_closest_marker("outside") is None


def _store(item: pytest.Item) -> str:
    """Which store must run on the host for this test."""
    parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    return parameters.get("each_store") or host.default_store()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of this folder where they cannot be run, or were not asked for."""
    if reason := _why_not():
        for item in _ours(items):
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Outside, report a test of this folder as dom0's pytest did, having booted it for the first of them."""
    if INSIDE or _why_not() or not _inside(item):
        return None
    if not _boots:
        _begin(item.session.items, item.config)
    boot = _boots[item.nodeid].result()
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = [
        hook.pytest_report_from_serializable(config=item.config, data=report) for report in boot.reports(item.nodeid)
    ]
    if not any(report.when == "teardown" for report in reports):
        reports.append(_unreported(item, boot.story()))
    for report in reports:
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _begin(items: list[pytest.Item], config: pytest.Config) -> None:
    """Begin the boots for all tests that were selected."""
    selected = [(item.nodeid, _store(item)) for item in items if _inside(item)]
    pool = ThreadPoolExecutor(AT_ONCE)
    for planned in boots.plan(selected, AT_ONCE):
        begun = pool.submit(host.Boot, planned.items, _out(config), store=planned.store)
        _boots.update(dict.fromkeys(planned.items, begun))
    pool.shutdown(wait=False)


def _out(config: pytest.Config) -> Path:
    """A folder for this boot's results, kept as long as pytest keeps its temporary folders."""
    factory: Any = config._tmp_path_factory  # type: ignore[attr-defined]  # fixtures are not available here
    folder: Path = factory.mktemp("xen", numbered=True)
    return folder


def _unreported(item: pytest.Item, story: str) -> pytest.TestReport:
    return pytest.TestReport(
        item.nodeid, item.location, {}, "failed", f"dom0 did not report the end of this test.\n{story}", "call"
    )


class _Reporter:
    """Inside: writes each report down at once, so that none is lost if the machine dies."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write one line."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with open(OUT / host.REPORTS, "a") as file:
            file.write(json.dumps(data) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    """Inside, have every report written down."""
    config.addinivalue_line("markers", "outside: a test of tests/xen that does not run in dom0")
    if INSIDE:
        config.pluginmanager.register(_Reporter(config), "xenbusd-xen-reports")


@pytest.fixture(params=STORES)
def each_store(request: pytest.FixtureRequest) -> str:
    """Have a test run twice: on a host with oxenstored, and on one with the xenstored in C. Yield which."""
    store: str = request.param
    assert store in run("ps", "-C", store)
    return store


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The backends, for all tests of a module."""
    with daemon("serve", tmp_path_factory.mktemp("serve")) as process:
        yield process
