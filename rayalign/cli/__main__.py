"""`python -m rayalign.cli`."""

from rayalign.cli import main

main()
