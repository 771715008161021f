"""Fixtures: a data plane, and upstreams that are scripted byte by byte."""

from __future__ import annotations

from tests.proxy.conftest import mesh, upstream

__all__ = ["mesh", "upstream"]
