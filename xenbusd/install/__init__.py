"""Installs and removes the files that pip cannot: units, hotplug scripts, configuration."""
