"""Runs of the test suite: preparing them, mutants, passes in a row."""
