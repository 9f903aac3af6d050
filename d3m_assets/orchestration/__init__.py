"""What Dagster needs around the graph: partitions, recording, checks, automation, and launching from a shell.

Dagster shows and launches; :meth:`d3m_assets.pipeline.Pipeline.plan` decides what is to be done. Its staleness stops
at 100 mapped partitions and does not see settings, so nothing here asks Dagster what is up to date.
"""
