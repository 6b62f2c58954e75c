"""Lists of tests: the mutants, the passes in a row, and the runs of pytest behind both."""
