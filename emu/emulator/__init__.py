"""Which QEMU and which accelerator run the stack, and what each gets wrong."""
