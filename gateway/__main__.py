"""`python -m gateway <command>`: the same as manage.py, from anywhere."""

from gateway.cli import main

if __name__ == "__main__":
    main()
