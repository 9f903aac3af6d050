"""Bundles in the formats of other tools, and embeddings of theirs in ours."""
