"""Shared rings: index arithmetic, the fence, and the two ends of a ring over mapped pages."""
