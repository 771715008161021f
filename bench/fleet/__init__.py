"""Many sidecars on one budget, on a real engine, with everything killed: `make fleet`, `python -m bench.fleet`.

The spend is counted where it arises, at the provider's stand-in; what any sidecar believes is not asked.
"""
