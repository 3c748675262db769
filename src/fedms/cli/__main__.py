"""`python -m fedms.cli`: the same as the command `fedms`."""

from fedms.cli.main import main

if __name__ == "__main__":
    main()
