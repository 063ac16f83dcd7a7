"""`python -m hookexp`."""

from hookexp.app import main

if __name__ == "__main__":
    main()
