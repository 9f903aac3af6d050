"""Dagster, derived from a graph of assets: partitions, recording, checks, jobs, automation, and launching from a shell.

Dagster shows and launches; the planner decides what is to be done. Dagster's own staleness stops at 100 mapped partitions
and does not see settings, so nothing here asks Dagster what is up to date. No module here names an asset.
"""
