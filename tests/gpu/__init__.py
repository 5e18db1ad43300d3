"""One command for any quarter of an hour on a GPU: ``python -m tests.gpu --help`` says what to type."""
