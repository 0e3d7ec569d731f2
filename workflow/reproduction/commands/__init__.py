"""Commands of the project that are not in the wheel: `python -m reproduction.commands.NAME`."""
