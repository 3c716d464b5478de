"""`xenbusd serve`, `agent`, `sim` and `store`: argv -> configuration -> a process that runs until SIGTERM or SIGINT.

And the commands that prepare such a process or clear up after it: `install`, `uninstall`, `release`. Each command
imports what it runs when it runs; `--help` needs none of it, and should answer at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any, Protocol

import click

from xenbusd import log
from xenbusd.bus.state import Side
from xenbusd.cli.exits import sentences
from xenbusd.process.loop import CHOICES, run

if TYPE_CHECKING:
    from xenbusd.config import Config

Options = dict[str, Any]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="xenbusd")
def main() -> None:
    """Xen's split drivers in user space: backends (serve), frontends (agent), and a simulated host to try them on."""


def _daemon_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--loop", type=click.Choice(CHOICES), help="event loop  [auto: uvloop if installed]"),
        click.option("--log-level", type=click.Choice(log.LEVELS), help="least level that is logged  [info]"),
        click.option("--log-format", type=click.Choice(log.FORMATS), help="form of the log on stderr  [auto]"),
        click.option(
            "--class", "classes", multiple=True, metavar="CLASS", help="device class to serve; repeatable  [all]"
        ),
        click.option(
            "--run-dir", metavar="DIR", help="directory for sockets  [/run/xenbusd, or beside a simulated host's]"
        ),
        click.option("--config", "config_path", metavar="FILE", help="configuration file (TOML)"),
        click.option("--host", metavar="xen|sim:PATH", envvar="XENBUSD_HOST", help="the machine  [xen]"),
    ):
        command = option(command)
    return command


_arbiter_option = click.option(
    "--arbiter/--no-arbiter", default=None, help="leave devices that are not ours to Linux's own backends  [no]"
)


@main.command()
@_arbiter_option
@_daemon_options
def serve(**options: Any) -> None:
    """Run the backends of this domain: dom0, or a driver domain."""
    _run_daemon(Side.BACKEND, None, options)


@main.command()
@_arbiter_option
@_daemon_options
def release(**options: Any) -> None:
    """Have Linux bind its own backends by itself again, after a daemon in arbiter mode was killed.

    Takes the same options as serve. A daemon that is stopped does this by itself; a second time does no harm.
    """
    from xenbusd import daemon

    with sentences():
        config = _configure(options)
        log.setup(config.daemon.log_format, config.daemon.log_level)
        click.echo(run(daemon.release(config), loop=config.daemon.loop))


@main.command()
@click.option("--domid", type=click.IntRange(0, 0x7FEF), help="the domain to be in, on a simulated host")
@_daemon_options
def agent(domid: int | None, **options: Any) -> None:
    """Run the frontends of this domain: a guest."""
    _run_daemon(Side.FRONTEND, domid, options)


def _run_daemon(side: Side, domid: int | None, options: Options) -> None:
    from xenbusd.daemon import Daemon
    from xenbusd.host.choose import open_host

    with sentences():
        config = _configure(options)
        log.setup(config.daemon.log_format, config.daemon.log_level)
        if domid is None and side is Side.FRONTEND and config.daemon.host != "xen":
            raise click.UsageError("on a simulated host the agent needs the domain that it is in, as in --domid 1")
        with closing(open_host(config.daemon.host, domid=domid)) as host:
            run(Daemon(side, host, config).run(), loop=config.daemon.loop)


def _configure(options: Options) -> Config:
    from xenbusd.config import Config, load

    path = options.pop("config_path")
    config = load(path) if path else Config()
    return config.with_overrides(**{**options, "classes": options["classes"] or None})


_root_option = click.option(
    "--root", metavar="DIR", help="below this directory, as package builders do  [this machine]"
)
_dry_run_option = click.option("--dry-run", is_flag=True, help="only print what would be done")


@main.command()
@click.option("--agent", is_flag=True, help="install the frontends, in a guest  [the backends]")
@click.option(
    "--mode", type=click.Choice(["arbiter", "exclusive"]), help="beside Linux's backends, or instead  [as installed]"
)
@click.option("--enable", is_flag=True, help="start the service at boot")
@click.option("--now", is_flag=True, help="start the service at boot, and now")
@_root_option
@click.option("--program", metavar="PATH", help="the program that the unit runs  [this xenbusd]")
@_dry_run_option
def install(**options: Any) -> None:
    """Install unit, hotplug scripts and configuration, and print each file. A changed file is kept."""
    from xenbusd.cli.install import install

    with sentences():
        install(**options)


@main.command()
@_root_option
@click.option("--force", is_flag=True, help="uninstall even if guests use our devices")
@_dry_run_option
def uninstall(**options: Any) -> None:
    """Stop the service and remove what install has installed, except files that have been changed since."""
    from xenbusd.cli.install import uninstall

    with sentences():
        uninstall(**options)


@main.command()
@click.option("--socket", "path", required=True, metavar="PATH", help="the host's socket; its store is at PATH.store")
def sim(path: str) -> None:
    """Run a simulated Xen host: grants, event channels, domains, and a store."""
    from xenbusd.host.sim.broker import SimBroker

    with sentences():
        run(_until_signal(SimBroker(path), f"simulated host at {path}\nstore: XENSTORED_PATH={path}.store"))


@main.command()
@click.option("--socket", "path", required=True, metavar="PATH", help="the store's socket, for dom0")
def store(path: str) -> None:
    """Run the embedded XenStore alone, for Xen's own tools, pyxs, and tests."""
    from xenbusd.store.server import StoreServer

    class Store(StoreServer):
        async def start(self) -> None:
            await self.listen(path)

    with sentences():
        run(_until_signal(Store(), f"store: XENSTORED_PATH={path}"))


class _Server(Protocol):
    """A server that runs until a signal."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...


async def _until_signal(server: _Server, greeting: str) -> None:
    """Start a server, print a greeting, and close the server at SIGTERM or SIGINT."""
    import asyncio
    import signal

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await server.start()
    try:
        click.echo(greeting)
        await stop.wait()
    finally:
        await server.close()
