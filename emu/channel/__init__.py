"""The command channel into a guest: commands and files, many at once, over one byte stream."""
