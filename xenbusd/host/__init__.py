"""The host interface: grants, event channels and the endpoint of the store."""
