"""`python -m moegauge`, the same as the console script."""

from moegauge.cli import main

if __name__ == "__main__":
    main()
