"""Attacks that are kept: each counts what happened, in a short form for every run and a long one by command."""
