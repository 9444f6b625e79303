"""The command line. Each subcommand is a module of this package, imported when it is called."""

from qpass.cli.front import main

__all__ = ["main"]
