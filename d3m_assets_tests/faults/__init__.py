"""Attacks that the package has to stand, each with a short form in the tests and a long one by command."""
