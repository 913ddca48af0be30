"""Runs that begin with the weights of an encoder: ``--init``, what then moves, and a guard of what it knew."""
