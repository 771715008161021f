"""meshd beside other proxies, in one run: `python -m bench`, or `make bench`.

Read in this order: `rows` (what is measured), `loads`, `latency`, `memory`, `growth`, `overspent` (how each sort of row
is), `stage` (upstream, peers, cores), `load/` and `upstream/` (the two ends), `peers/` (what is between them),
`figures` (the arithmetic), `report` (the tables). The method is told in `docs/benchmarks.md`.
"""
