"""The context of every command of `xenbusctl`: the host, the daemon's socket, the driver, and NAME=VALUE parameters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

import click

from xenbusd.bus.state import Side
from xenbusd.cli.exits import sentences
from xenbusd.errors import UsageError
from xenbusd.ids import DOM0, DeviceClass

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from xenbusd.bus.driver import Backend
    from xenbusd.config import Config
    from xenbusd.control.client import ControlClient
    from xenbusd.store.client import StoreClient


class Context:
    """Which host, where its daemon answers, and how to print."""

    def __init__(self, config: Config, as_json: bool) -> None:
        self.config = config
        self.as_json = as_json

    def in_store(self, body: Callable[[StoreClient], Awaitable[None]]) -> None:
        """Run `body` with a session of dom0, to its end; an error becomes a sentence and an exit status."""

        async def run() -> None:
            from xenbusd.host.choose import store_of
            from xenbusd.store.client import StoreClient

            async with StoreClient(store_of(self.config.daemon.host)) as store:
                await body(store)

        self.run(run())

    @staticmethod
    def run(main: Coroutine[Any, Any, None]) -> None:
        """Run a command to its end; an error becomes a sentence and an exit status."""
        import asyncio

        with sentences():
            asyncio.run(main)

    def daemon(self) -> AbstractAsyncContextManager[ControlClient]:
        """Connect to dom0's daemon; raises ControlError if none answers."""
        from xenbusd.control.client import connected

        return connected(self.config.control_socket(DOM0))


def backend_driver(device_class: DeviceClass) -> type[Backend]:
    """The driver that knows a class's parameters.

    Raises:
        DriverError: there is none for the class.
    """
    from xenbusd import registry

    return cast("type[Backend]", registry.find(Side.BACKEND, [device_class])[device_class])


def json_too(command: Callable[..., None]) -> Callable[..., None]:
    """Accept --json behind the command's name as well."""

    def note(click_context: click.Context, _: click.Parameter, given: bool) -> None:
        if given:
            click_context.obj.as_json = True

    return click.option("--json", is_flag=True, expose_value=False, callback=note, help="print JSON, for programs")(
        command
    )


def parse_parameters(words: tuple[str, ...]) -> dict[str, str]:
    """Split NAME=VALUE words.

    Raises:
        UsageError: a word has no name or no `=`, or a name is given twice.
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
