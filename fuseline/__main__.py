"""`python -m fuseline`: the `fuseline` command."""

from fuseline.command import main

if __name__ == "__main__":
    main()
