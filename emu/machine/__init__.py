"""One emulated PC: QEMU, its accelerator, consoles, channel, checkpoints and verdicts."""
