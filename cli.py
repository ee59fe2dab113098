"""`python cli.py …` from a checkout: the same program as the installed `kat`."""

from kat.cli import main

if __name__ == "__main__":
    main()
