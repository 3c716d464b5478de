"""Arbiter mode: one device class served by xenbusd and by Linux's own backend, side by side."""
