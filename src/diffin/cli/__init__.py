"""The command line: what the library does, said in a shell."""

from diffin.cli.main import app, main

__all__ = ["app", "main"]
