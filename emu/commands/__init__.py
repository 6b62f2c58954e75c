"""The commands of `emu`: each parses its options, calls one function of lab/, and prints."""
