"""The graph, one module an asset: everything about an asset stands in its module.

Thin by rule: an asset says what it is made from and what decides about its content, calls the library that knows how to
make it, and owns the format of its files. ``graph.py`` lists the assets; no algorithm lives here, and nothing of Dagster.
"""
