"""What every command of `xenbusctl` needs: which host, how to speak, and NAME=VALUE parameters."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

import click

from xenbusd.cli.exits import sentences
from xenbusd.config import Config
from xenbusd.control.client import ControlClient, connected
from xenbusd.errors import UsageError
from xenbusd.host.choose import store_of
from xenbusd.ids import DOM0
from xenbusd.store.client import StoreClient


class Context:
    """Which host, and where its daemon answers."""

    def __init__(self, config: Config, as_json: bool) -> None:
        self.config = config
        self.as_json = as_json

    def in_store(self, body: Callable[[StoreClient], Awaitable[None]]) -> None:
        """Run `body` with a session of dom0."""

        async def run() -> None:
            async with StoreClient(store_of(self.config.daemon.host)) as store:
                await body(store)

        self.run(run())

    @staticmethod
    def run(main: Coroutine[Any, Any, None]) -> None:
        """Run a command to its end; what goes wrong becomes a sentence."""
        with sentences():
            asyncio.run(main)

    def daemon(self) -> AbstractAsyncContextManager[ControlClient]:
        """Connect to dom0's daemon; raises ControlError if none answers."""
        return connected(os.path.join(self.config.run_dir(DOM0), "control.sock"))


def json_too(command: Callable[..., None]) -> Callable[..., None]:
    """Let --json stand behind the command's name as well."""

    def note(click_context: click.Context, _: click.Parameter, given: bool) -> None:
        if given:
            click_context.obj.as_json = True

    return click.option("--json", is_flag=True, expose_value=False, callback=note, help="print JSON, for programs")(
        command
    )


def parse_parameters(words: tuple[str, ...]) -> dict[str, str]:
    """Take NAME=VALUE words apart.

    Raises:
        UsageError: a word is none, or a name is given twice.
    """
    parameters: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UsageError(f"{word!r} is no parameter: write NAME=VALUE, as in mode=w")
        if name in parameters:
            raise UsageError(f"{name} is given twice")
        parameters[name] = value
    return parameters
