"""The three stages of AdvrBD (arXiv:2405.12719), one step a file, in the order in which they run."""
