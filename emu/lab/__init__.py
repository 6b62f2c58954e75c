"""The commands' work: run, shell, replay, doctor, bench."""
