"""`xenbusctl set`, `pause` and `resume`: change a device in use, by keys of its backend's directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from xenbusd import toolstack
from xenbusd.bus.paths import parse_name
from xenbusd.cli.context import Context, backend_driver, json_too, parse_parameters
from xenbusd.errors import UsageError

if TYPE_CHECKING:
    from xenbusd.store.client import StoreClient


@click.command("set")
@click.argument("device")
@click.argument("parameters", nargs=-1, metavar="[NAME=VALUE]...")
@json_too
@click.pass_obj
def set_live(context: Context, device: str, parameters: tuple[str, ...]) -> None:
    """Change a device while it is in use. Without NAME=VALUE, show what can be changed.

    For a disk: xenbusctl set vbd/3/51712 iops=2000 bandwidth=50M; 0 takes a limit away.
    """
    if not parameters:
        _print_live(context, device)
        return

    async def run(store: StoreClient) -> None:
        id = parse_name(device)
        keys = backend_driver(id.device_class).live_keys(parse_parameters(parameters))
        await toolstack.write_live(store, id, keys)
        written = ", ".join(f"{key} {value}" for key, value in keys.items())
        say(context, f"{id}: {written}", {"device": str(id), **keys})

    context.in_store(run)


def _print_live(context: Context, device: str) -> None:
    async def run() -> None:
        id = parse_name(device)
        live = backend_driver(id.device_class).live
        keys = {key: option.help for key, option in live.items()}
        say(context, live.help or f"nothing of a device of class {id.device_class} can be changed", keys)

    context.run(run())


@click.command()
@click.argument("device")
@click.option(
    "--deadline", default=toolstack.PAUSE_S, show_default=True, help="seconds for requests in flight to be done"
)
@json_too
@click.pass_obj
def pause(context: Context, device: str, deadline: float) -> None:
    """Have a device finish the requests in flight and close what it serves, while its guest waits.

    Returns once that is done. A disk's image may be copied, replaced or enlarged then.
    """
    _switch(context, device, deadline, paused=True)


@click.command()
@click.argument("device")
@click.option("--deadline", default=toolstack.PAUSE_S, show_default=True, help="seconds until it serves again")
@json_too
@click.pass_obj
def resume(context: Context, device: str, deadline: float) -> None:
    """Have a paused device serve again, with what its `params` names by now."""
    _switch(context, device, deadline, paused=False)


def _switch(context: Context, device: str, deadline_s: float, *, paused: bool) -> None:
    async def run(store: StoreClient) -> None:
        id = parse_name(device)
        if "pause" not in backend_driver(id.device_class).live:
            raise UsageError(f"{id}: devices of class {id.device_class} cannot be paused")
        await toolstack.pause(store, id, paused=paused, deadline_s=deadline_s)
        say(context, f"{id} is {'paused' if paused else 'resumed'}", {"device": str(id), "paused": paused})

    context.in_store(run)


def say(context: Context, sentence: str, known: Mapping[str, object]) -> None:
    """Print a sentence for people, or JSON for programs."""
    click.echo(json.dumps(known) if context.as_json else sentence)
