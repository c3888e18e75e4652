"""Was knowledge deleted, or only suppressed? The public door and the command line."""

from evidence import moved

moved.install()
