"""`xenbusctl`: attaches, detaches, changes and shows devices.

Commands read the store themselves, and ask a daemon only for what is not in the store. Modules of commands import what
a command needs (asyncio, the store client, drivers) when it runs: `--help` needs none of it, and should answer at once.

Decision: D68.
"""

from __future__ import annotations

import click

from xenbusd.cli.attach import attach, detach
from xenbusd.cli.context import Context
from xenbusd.cli.exits import sentences
from xenbusd.cli.live import pause, resume, set_live
from xenbusd.cli.new_driver import new_driver
from xenbusd.cli.show import list_devices, show, timeline


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--host", metavar="xen|sim:PATH", envvar="XENBUSD_HOST", help="the machine  [xen]")
@click.option(
    "--run-dir", metavar="DIR", help="the daemon's directory  [/run/xenbusd, or beside a simulated host's socket]"
)
@click.option("--config", "config_path", metavar="FILE", help="the daemon's configuration file")
@click.option("--json", "as_json", is_flag=True, help="print JSON, for programs")
@click.version_option(package_name="xenbusd")
@click.pass_context
def main(
    click_context: click.Context, host: str | None, run_dir: str | None, config_path: str | None, as_json: bool
) -> None:
    """Attach, detach and inspect devices. A device's name is CLASS/DOMID/DEVID, as in vbd/3/51712."""
    from xenbusd.config import Config, load

    with sentences():
        config = load(config_path) if config_path else Config()
        click_context.obj = Context(config.with_overrides(host=host, run_dir=run_dir), as_json)


for command in (attach, detach, list_devices, show, timeline, set_live, pause, resume, new_driver):
    main.add_command(command)


if __name__ == "__main__":
    main()
