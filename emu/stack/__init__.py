"""From what was asked for to a running host: wish, stack, drivers, recording."""
