"""``python -m domainclip``, and ``torchrun … -m domainclip``: the command."""

from domainclip.cli import main

if __name__ == "__main__":
    main()
