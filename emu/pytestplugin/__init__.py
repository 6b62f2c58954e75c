"""The pytest plugin: the emulated stack as fixtures, marks and options."""
