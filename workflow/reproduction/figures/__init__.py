"""The figures: one module each, run as `python -m reproduction.figures.NAME ... --out A.pdf B.png`.

A figure reads tidy files alone. Each module's `draw` makes it from loaded tables and arrays;
`_common` has what all of them share, and `_table` says of every figure which files and options its
module is given.
"""
