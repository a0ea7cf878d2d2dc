"""``python -m diffin``."""

from diffin.cli import main

main()
