"""The figures: one module each, run as `python -m reproduction.figures.NAME ... --out A.pdf B.png`.

A figure reads only tidy files. Each module's `draw` makes it from loaded tables and arrays.
`_common` has what they share, and `_table` says which files and options the module of each figure
gets.
"""
