"""`xenbusctl list`, `show` and `timeline`: print the store's and the daemon's knowledge of devices."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from xenbusd import toolstack
from xenbusd.bus.finding import Nodes
from xenbusd.bus.paths import DeviceId, parse_name
from xenbusd.bus.state import Side, State
from xenbusd.cli.context import Context, backend_driver, json_too
from xenbusd.errors import DriverError, NodeNotFound, UsageError
from xenbusd.ids import DOM0

if TYPE_CHECKING:
    from xenbusd.bus.driver import Backend
    from xenbusd.store.client import StoreClient


@click.command("list")
@json_too
@click.pass_obj
def list_devices(context: Context) -> None:
    """Show every device, and what each one that is not Connected waits for."""

    async def run(store: StoreClient) -> None:
        found = [(id, await toolstack.observe(store, id)) for id in await toolstack.devices(store)]
        if context.as_json:
            click.echo(json.dumps([{"device": str(id), **_as_json(pair)} for id, pair in found]))
        elif found:
            _print_table(found)
        else:
            click.echo("no devices")

    context.in_store(run)


def _print_table(found: list[tuple[DeviceId, toolstack.PairState]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for title in ("device", "backend", "frontend", "online", "waiting"):
        table.add_column(title, overflow="fold")
    for id, pair in found:
        online = "yes" if pair.online else "no"
        table.add_row(str(id), pair.backend.title, pair.frontend.title, online, _waiting(pair, id))
    Console(soft_wrap=not os.isatty(1)).print(table)


def _waiting(pair: toolstack.PairState, id: DeviceId) -> str:
    return "" if pair.backend is State.CONNECTED and pair.frontend is State.CONNECTED else toolstack.stuck(pair, id)


def _as_json(pair: toolstack.PairState) -> dict[str, object]:
    return {key: value.title if isinstance(value, State) else value for key, value in asdict(pair).items()}


@click.command()
@click.argument("device")
@json_too
@click.pass_obj
def show(context: Context, device: str) -> None:
    """Show all that is known of a device: both ends' nodes, its ring and counters, and which end waits for what."""

    async def run(store: StoreClient) -> None:
        from xenbusd.control.records import ControlError

        id = parse_name(device)
        pair = await toolstack.observe(store, id)
        if pair.backend is State.UNKNOWN and pair.frontend is State.UNKNOWN:
            raise UsageError(f"there is no device {id}; `xenbusctl list` shows those there are")
        daemon: dict[str, object]
        try:
            async with context.daemon() as client:
                details = await client.details(str(id))
            daemon, conditions = details.to_json(), details.findings or ()
        except ControlError as error:
            daemon, conditions = {"unknown": f"{error}{_elsewhere(id)}"}, ()
        nodes = Nodes(await _nodes(store, id.path(Side.BACKEND)), await _nodes(store, id.path(Side.FRONTEND)))
        waiting = _waiting(pair, id)
        found = [each for each in toolstack.explain(pair, id, nodes, _driver(id)) if str(each) != waiting]
        known = {
            "device": str(id),
            **_as_json(pair),
            "waiting": waiting,
            "findings": [asdict(each) for each in found],
            "nodes": {id.path(Side.BACKEND): _as_text(nodes.backend), id.path(Side.FRONTEND): _as_text(nodes.frontend)},
            "daemon": daemon,
        }
        if context.as_json:
            click.echo(json.dumps(known))
        else:
            daemon["findings"] = [str(each.finding) for each in conditions]
            click.echo("\n".join(outline({**known, "findings": list(map(str, found))})))

    context.in_store(run)


def _elsewhere(id: DeviceId) -> str:
    """A hint at another daemon to ask, for the answer of one that does not know the device."""
    return f"; its backend is in domain {id.backend_domid}: ask there" if id.backend_domid != DOM0 else ""


def _driver(id: DeviceId) -> type[Backend] | None:
    try:
        return backend_driver(id.device_class)
    except DriverError:
        return None


def outline(tree: Mapping[str, object], indent: str = "") -> Iterator[str]:
    """A nested mapping as lines, without its empty values; a list of `findings` as a line for each."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from outline(value, indent + "  ")
        elif key == "findings" and isinstance(value, list):
            yield from (f"{indent}finding = {each}" for each in value)
        elif value not in (None, ""):
            yield f"{indent}{key} = {value}"


async def _nodes(store: StoreClient, path: str) -> dict[str, bytes]:
    """A directory's keys and values."""
    nodes = {}
    try:
        for name in await store.directory(path):
            nodes[name] = await store.read(f"{path}/{name}")
    except NodeNotFound:
        pass
    return nodes


def _as_text(nodes: Mapping[str, bytes]) -> dict[str, str]:
    return {name: value.decode("utf-8", "backslashreplace") for name, value in nodes.items()}


@click.command()
@click.argument("device")
@json_too
@click.pass_obj
def timeline(context: Context, device: str) -> None:
    """Draw which end did what, and when, as the 2006 paper does; for a device that is there, or that has gone."""

    async def run() -> None:
        from xenbusd.cli.diagram import draw
        from xenbusd.control.records import ControlError

        id = parse_name(device)
        try:
            async with context.daemon() as client:
                timeline = await client.timeline(str(id))
        except ControlError as error:
            raise ControlError(f"{error}{_elsewhere(id)}") from None
        click.echo(json.dumps(timeline.to_json()) if context.as_json else "\n".join(draw(timeline.entries)))

    context.run(run())
