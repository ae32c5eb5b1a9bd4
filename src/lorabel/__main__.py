"""`python -m lorabel`."""

from lorabel.cli.main import main

main()
