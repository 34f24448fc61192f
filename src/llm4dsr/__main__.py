"""The command line as a module, for `python -m llm4dsr` and launchers of several processes."""

from llm4dsr.cli.main import main

if __name__ == "__main__":
    main()
