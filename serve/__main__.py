"""`python -m serve PACKAGE…`: the same as `fuseline serve`."""

from fuseline.serve.commands.serve_command import main

if __name__ == "__main__":
    main()
