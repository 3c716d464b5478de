"""The events of the log: every name that xenbusd itself writes, with one sentence on its cause. Pure.

A name is "<subject>.<what happened to it>". Names are part of xenbusd's interface: filters and alerts can rely on them.
A driver lists its own in `events.py` of its package. A test compares these lists with the code, both ways, and with
docs/events.md.

Decision: D53.
"""

EVENTS = {
    "arbiter.began": "Arbiter mode is on: the kernel binds no backend device by itself; its loaded drivers are named.",
    "arbiter.late": "The store did not answer while arbiter mode ended: some devices may be left without a driver.",
    "arbiter.released": "Arbiter mode is off: the kernel binds new devices by itself; those handed over now are named.",
    "autoprobe.changed": "The kernel's switch for binding devices by itself was set during arbiter mode; it was reset.",
    "autoprobe.refused": "The kernel's switch for binding devices by itself cannot be read or written.",
    "class.unserved": "Neither xenbusd nor Linux has a driver for a device class; logged once for each class.",
    "daemon.started": "Every device class is watched; devices begin from now on.",
    "daemon.stopped": "Every device was closed, or left Connected for the next daemon.",
    "device.adopted": "A connected device of the previous daemon is served with the same ring.",
    "device.appeared": "A complete device directory was found, and the device has a task now.",
    "device.closed": "A connection, or an attempt at one, has ended; with the reason and what was counted.",
    "device.connected": "This end switched to Connected.",
    "device.failed": "The host or a resource failed a device; the error was written to its error node too.",
    "device.handed_over": "In arbiter mode, the kernel's driver was bound to a device that is not ours.",
    "device.lost": "A device's task ended by an error that nothing caught: a bug in xenbusd.",
    "device.taken": "In arbiter mode, the kernel had bound a device that is ours, and keeps it.",
    "device.unclean": "The previous daemon's ring cannot be adopted: the device closes, to be connected anew.",
    "device.unserved": "In arbiter mode, a device that is not ours has no driver of the kernel's either.",
    "driver.crashed": "A driver raised an error that neither the other end nor the host caused: a bug; with traceback.",
    "hotplug.failed": "A hotplug script could not be run, was killed at its time limit, or exited with an error.",
    "hotplug.finished": "A hotplug script exited with status 0.",
    "library.logged": "A library, most often asyncio, logged a warning or an error.",
    "otherend.fault": "The other end broke the protocol, or is missing; rate-limited for each device.",
    "otherend.late": "The other end did not answer a step in time, and was not waited for any longer; rate-limited.",
    "otherend.misplaced": "A device directory names an other end that cannot be its own: it is ignored; rate-limited.",
    "scan.failed": "The store could not list devices; they are listed again at the next hint or after 30 s.",
    "state.switched": "This end wrote a new `state`.",
    "store.back": "The store answers again; every watch is set and every device observed anew.",
    "store.lost": "The connection to the store has ended; requests wait until it answers again.",
    "uevents.refused": "The kernel's device events cannot be received: arbiter mode finds devices a little later.",
}
