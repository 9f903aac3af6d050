"""Attacks that the package has to stand: each counts what happened, in a short form in the tests and a long one by command."""
