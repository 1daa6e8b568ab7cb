"""``python -m mirepoix``."""

from mirepoix.cli import main

main()
