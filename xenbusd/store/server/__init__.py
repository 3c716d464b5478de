"""The embedded store: a XenStore server for the simulated host, for tests, and alone (`xenbusd store`)."""

from xenbusd.store.server.quotas import Quotas
from xenbusd.store.server.service import StoreServer

__all__ = ["Quotas", "StoreServer"]
