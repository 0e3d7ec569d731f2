"""Solvers that are fitted to full runs, written from their papers."""
