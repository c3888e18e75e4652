"""The command line, `exhume`."""
