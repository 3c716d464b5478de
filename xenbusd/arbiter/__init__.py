"""Arbiter mode: xenbusd and Linux's own backends serve devices of one class side by side."""
