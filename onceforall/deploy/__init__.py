"""From a budget to a file that runs."""
