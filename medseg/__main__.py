"""`python -m medseg`: the command line, where the `medseg` command is not on the path."""

from medseg.cli import main

if __name__ == "__main__":
    main()
