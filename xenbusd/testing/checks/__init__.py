"""The duties of every driver pair, as checks that need no test framework.

    class Check(PairChecks):
        backend, frontend, readme = MyBackend, MyFrontend, Path("README.md")

    asyncio.run(check_pair(Check))

With pytest, use `xenbusd.testing.conformance` instead, which has the same checks as tests.
"""

from xenbusd.testing.checks.cases import Case, cases, check_pair
from xenbusd.testing.checks.honest import HonestChecks
from xenbusd.testing.checks.malice import MaliceChecks
from xenbusd.testing.checks.misfortune import MisfortuneChecks

__all__ = ["Case", "PairChecks", "cases", "check_pair"]


class PairChecks(MaliceChecks, MisfortuneChecks, HonestChecks):
    """Derive a class from this, and describe your pair in it, as `PairUnderTest` says."""
