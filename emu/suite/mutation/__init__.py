"""Mutants made by machine: a sample of all the small changes that could be made to the drivers."""
