"""What people do: run, shell, doctor, bench."""
