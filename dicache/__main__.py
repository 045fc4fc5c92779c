"""`python -m dicache`."""

from dicache.cli.app import main

main()
