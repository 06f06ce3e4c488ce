"""`python -m gateway.cli`: the command, for those who have no script on their path."""

from gateway.cli import main

main()
