"""Rootstock: pretrain once on unlabeled images, graft onto any domain."""

__version__ = "0.1.0"
