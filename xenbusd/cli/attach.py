"""`xenbusctl attach` and `detach`: make a device pair and take it apart, as `xl` does for its own classes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from xenbusd import toolstack
from xenbusd.bus.paths import DeviceId, check_class, parse_name
from xenbusd.cli.context import Context, backend_driver, json_too, parse_parameters
from xenbusd.errors import OtherendTimeout, XenbusdError
from xenbusd.ids import Domid

if TYPE_CHECKING:
    from xenbusd.store.client import StoreClient


@click.command()
@click.argument("device_class", metavar="CLASS")
@click.argument("parameters", nargs=-1, metavar="[NAME=VALUE]...")
@click.option("--domain", required=True, type=click.IntRange(0, 0x7FEF), help="the guest's domid")
@click.option("--devid", required=True, help="the device's number, or a name such as xvda")
@click.option(
    "--deadline", default=toolstack.ATTACH_S, show_default=True, help="seconds to wait until both ends are Connected"
)
@click.option("--no-wait", is_flag=True, help="return as soon as the device is in the store")
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
        driver = backend_driver(name)
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
    """Wait with a line of progress on a terminal; if the wait fails or is interrupted, detach the device again."""
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


@click.command()
@click.argument("device")
@click.option("--force", is_flag=True, help="remove the device even if its frontend does not close")
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
