"""What an asset is, which artefacts should exist, whether they do, and in what order to make what is missing.

Nothing here names an asset, and nothing knows Dagster: the graph is handed in, and another graph would be planned alike.
"""
