"""`xenbusctl`: attaches, detaches and shows devices. What is in the store it reads there; what only a daemon knows it
asks the daemon for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import cast

import click

from xenbusd import registry, toolstack
from xenbusd.bus.driver import Backend
from xenbusd.bus.paths import DeviceId, check_class, parse_name
from xenbusd.bus.state import Side, State
from xenbusd.cli.context import Context, json_too, parse_parameters
from xenbusd.cli.diagram import draw
from xenbusd.cli.exits import sentences
from xenbusd.cli.live import pause, resume, set_live
from xenbusd.cli.new_driver import new_driver
from xenbusd.config import Config, load
from xenbusd.control.records import ControlError
from xenbusd.errors import NodeNotFound, OtherendTimeout, UsageError, XenbusdError
from xenbusd.ids import Domid
from xenbusd.store.client import StoreClient


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--host", metavar="xen|sim:PATH", envvar="XENBUSD_HOST", help="the machine  [xen]")
@click.option(
    "--run-dir", metavar="DIR", help="the daemon's folder  [/run/xenbusd, or beside a simulated host's socket]"
)
@click.option("--config", "config_path", metavar="FILE", help="the daemon's configuration file")
@click.option("--json", "as_json", is_flag=True, help="print JSON, for programs")
@click.version_option(package_name="xenbusd")
@click.pass_context
def main(
    click_context: click.Context, host: str | None, run_dir: str | None, config_path: str | None, as_json: bool
) -> None:
    """Attach, detach and look at devices. A device's name is CLASS/DOMID/DEVID, as in vbd/3/51712."""
    with sentences():
        config = load(config_path) if config_path else Config()
        click_context.obj = Context(config.with_overrides(host=host, run_dir=run_dir), as_json)


@main.command()
@click.argument("device_class", metavar="CLASS")
@click.argument("parameters", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--domain", required=True, type=click.IntRange(0, 0x7FEF), help="the guest's domid")
@click.option("--devid", required=True, help="the device's number, or a name such as xvda")
@click.option(
    "--deadline", default=toolstack.ATTACH_S, show_default=True, help="seconds to wait until both ends are Connected"
)
@click.option("--no-wait", is_flag=True, help="return when the device is in the store")
@json_too
@click.pass_obj
def attach(
    context: Context,
    device_class: str,
    parameters: tuple[str, ...],
    domain: int,
    devid: str,
    deadline: float,
    no_wait: bool,
) -> None:
    """Give a domain a device, and wait until it is Connected.

    For a disk: xenbusctl attach vbd --domain 3 --devid xvda target=/srv/disk.img mode=w
    """

    async def run(store: StoreClient) -> None:
        name = check_class(device_class)
        driver = cast("type[Backend]", registry.find(Side.BACKEND, [name])[name])
        number = driver.parse_devid(devid)
        keys = driver.directories(number, parse_parameters(parameters))
        id = DeviceId(name, Domid(domain), number)
        await toolstack.attach(store, id, keys.backend, keys.frontend)
        if not no_wait:
            await _wait(store, id, deadline)
        if context.as_json:
            click.echo(json.dumps({"device": str(id), "connected": not no_wait}))
        else:
            click.echo(f"{id} is {'in the store' if no_wait else 'Connected'}")

    context.in_store(run)


async def _wait(store: StoreClient, id: DeviceId, deadline_s: float) -> None:
    """Wait with a line of progress on a terminal; if it fails, or is interrupted, leave nothing behind."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status(f"{id} ...") as status:
        try:
            await toolstack.wait_connected(
                store, id, deadline_s=deadline_s, progress=lambda text: status.update(f"{id}: {text}")
            )
        except BaseException as error:
            status.update(f"{id}: taking it back")
            try:
                await toolstack.detach(store, id, force=True)
            except XenbusdError as trouble:
                raise OtherendTimeout(f"{error}; and taking it back: {trouble}") from None
            raise


@main.command()
@click.argument("device")
@click.option("--force", is_flag=True, help="take it away even if the frontend does not close")
@click.option("--deadline", default=toolstack.DETACH_S, show_default=True, help="seconds for the ends to close")
@json_too
@click.pass_obj
def detach(context: Context, device: str, force: bool, deadline: float) -> None:
    """Take a device away."""

    async def run(store: StoreClient) -> None:
        id = parse_name(device)
        await toolstack.detach(store, id, force=force, deadline_s=deadline)
        click.echo(json.dumps({"device": str(id), "detached": True}) if context.as_json else f"{id} is detached")

    context.in_store(run)


@main.command("list")
@json_too
@click.pass_obj
def list_devices(context: Context) -> None:
    """Show every device, and what each one that is not Connected waits for."""

    async def run(store: StoreClient) -> None:
        found = [(id, await toolstack.observe(store, id)) for id in await toolstack.devices(store)]
        if context.as_json:
            click.echo(json.dumps([{"device": str(id), **_as_json(pair)} for id, pair in found]))
            return
        if not found:
            click.echo("no devices")
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD)
        for title in ("device", "backend", "frontend", "online", "waiting"):
            table.add_column(title, overflow="fold")
        for id, pair in found:
            table.add_row(
                str(id), pair.backend.title, pair.frontend.title, "yes" if pair.online else "no", _waiting(pair, id)
            )
        Console(soft_wrap=not os.isatty(1)).print(table)

    context.in_store(run)


def _waiting(pair: toolstack.PairState, id: DeviceId) -> str:
    return "" if pair.backend is State.CONNECTED and pair.frontend is State.CONNECTED else toolstack.stuck(pair, id)


def _as_json(pair: toolstack.PairState) -> dict[str, object]:
    return {key: value.title if isinstance(value, State) else value for key, value in asdict(pair).items()}


@main.command()
@click.argument("device")
@json_too
@click.pass_obj
def show(context: Context, device: str) -> None:
    """Show all that is known of a device: both ends' nodes, its ring and counters, and who waits for what."""

    async def run(store: StoreClient) -> None:
        id = parse_name(device)
        pair = await toolstack.observe(store, id)
        if pair.backend is State.UNKNOWN and pair.frontend is State.UNKNOWN:
            raise UsageError(f"there is no device {id}; `xenbusctl list` shows those there are")
        try:
            async with context.daemon() as client:
                daemon = (await client.details(str(id))).to_json()
        except ControlError as error:
            daemon = {"unknown": str(error)}
        nodes = {id.path(side): await _nodes(store, id.path(side)) for side in Side}
        known = {"device": str(id), **_as_json(pair), "waiting": _waiting(pair, id), "nodes": nodes, "daemon": daemon}
        if context.as_json:
            click.echo(json.dumps(known))
            return
        click.echo("\n".join(_outline(known)))

    context.in_store(run)


def _outline(tree: Mapping[str, object], indent: str = "") -> Iterator[str]:
    """A nested mapping as lines, without what is empty."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield f"{indent}{key}:"
            yield from _outline(value, indent + "  ")
        elif value not in (None, ""):
            yield f"{indent}{key} = {value}"


async def _nodes(store: StoreClient, path: str) -> dict[str, str]:
    """A directory's keys and values."""
    nodes = {}
    try:
        for name in await store.directory(path):
            nodes[name] = (await store.read(f"{path}/{name}")).decode("utf-8", "backslashreplace")
    except NodeNotFound:
        pass
    return nodes


@main.command()
@click.argument("device")
@json_too
@click.pass_obj
def timeline(context: Context, device: str) -> None:
    """Draw who did what, and when, as the 2006 paper does; of a device that is there, or was there last."""

    async def run() -> None:
        async with context.daemon() as client:
            timeline = await client.timeline(str(parse_name(device)))
        click.echo(json.dumps(timeline.to_json()) if context.as_json else "\n".join(draw(timeline.entries)))

    context.run(run())


for command in (set_live, pause, resume, new_driver):
    main.add_command(command)


if __name__ == "__main__":
    main()
