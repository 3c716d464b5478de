"""XenStore: the wire, an asyncio client, and an embedded server."""
