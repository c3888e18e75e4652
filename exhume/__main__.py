"""``python -m exhume`` runs the command ``exhume``."""

from exhume.cli.app import main

if __name__ == "__main__":
    main()
