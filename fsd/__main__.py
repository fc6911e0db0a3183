"""`python -m fsd`: the same as `fsd`."""

from fsd.cli import main

main()
