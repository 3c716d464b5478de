"""Arbiter mode: xenbusd and Linux's own backends share the devices of a class, each of which has one backend (T67)."""
