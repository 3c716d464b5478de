"""The echo ring: 64-byte slots, each one line of text with the number of its request. Pure: no I/O here."""

import struct
from dataclasses import dataclass
from typing import Self

from xenbusd.api import RingFormat

SLOT = struct.Struct("<HH60s")  # id, length, text
TEXT_MAX = 60


@dataclass(frozen=True)
class Line:
    """A request or its response."""

    id: int
    text: bytes

    def pack(self) -> bytes:
        return SLOT.pack(self.id, len(self.text), self.text)

    @classmethod
    def unpack(cls, slot: bytes) -> Self:
        id, length, text = SLOT.unpack(slot)
        if length > TEXT_MAX:
            raise ValueError(f"a line of {length} bytes in a slot for {TEXT_MAX}")
        return cls(id, text[:length])


RING = RingFormat(slot_bytes=SLOT.size, request=Line, response=Line)
