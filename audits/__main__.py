"""``python -m audits`` is ``exhume``."""

from audits.cli import main

if __name__ == "__main__":
    main()
