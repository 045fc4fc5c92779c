"""`python -m dicache`."""

from dicache.cli import main

main()
