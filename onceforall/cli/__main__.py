"""`python -m onceforall.cli`, which is `ofa`."""

from onceforall.cli import main

main()
