"""The one door to the machine: grants, event channels and the way to the store."""
