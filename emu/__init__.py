"""The Xen block stack, emulated: Xen, a dom0 and a domU inside QEMU, driven from Python."""

__version__ = "0.1.0"
