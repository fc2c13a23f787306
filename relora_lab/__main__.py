"""`python -m relora_lab` is the command `relora-lab`."""

from relora_lab.cli import main

main()
