"""The subcommands of `eigencache`, one module each; `eigencache.cli` lists them.

A subcommand's module has

    __doc__                    what `--help` says: a summary in one line, then more; and last,
                               after a line "examples:", lines that a newcomer can copy
    add_arguments(parser)      its command line
    run(arguments)             what it does

ValueError and OSError end it with one plain line and exit status 1. torch and pandas are imported
inside `run`, so that `--help` and other subcommands need not wait for them.
"""
