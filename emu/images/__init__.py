"""What the emulated PC boots: packages, kernels, modules, guest images, and their cache."""
