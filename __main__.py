"""`python -m rootstock`, which torchrun and accelerate launch too."""

from .launch.cli import main

if __name__ == "__main__":
    main()
