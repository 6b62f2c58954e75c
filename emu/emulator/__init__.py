"""Which QEMU and which accelerator run the stack, and the faults of each."""
