"""Measuring the scanner against a truth; the only rooms of the house that know which files are truly poisoned."""
