"""The reproduction of the paper with `eigencache`: everything that the workflow runs.

The Snakefile puts the folder `workflow/` on Python's path; this package is in no wheel.
"""
