"""Routing by intent: pure decisions, and over real sockets."""
