"""The official conformance suites, which other people wrote: run by hand, since they are fetched when they are run."""
