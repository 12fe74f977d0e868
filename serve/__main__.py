"""`python -m serve PACKAGE…`: the same as `fuseline serve`."""

from fuseline.serve.cli import main

if __name__ == "__main__":
    main()
