"""`python -m kat`."""

from kat.cli import main

if __name__ == "__main__":
    main()
