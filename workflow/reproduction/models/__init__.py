"""The models of experiments: where their files come from, and whether they are whole."""
