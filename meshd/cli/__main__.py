"""`python -m meshd.cli`: the command line where the `meshd` script is not on the path."""

from meshd.cli import main

if __name__ == "__main__":
    main(prog_name="meshd")
