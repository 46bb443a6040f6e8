"""The command line of advrbd: a thin skin over the package, and the only place that prints or exits."""
