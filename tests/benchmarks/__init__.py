"""Speed and memory of the library against a plain implementation of the public code's algorithms.

``python -m tests.benchmarks --help``; see README.md beside this file.
"""
