"""Fuzzing of the pure parsers: `targets` says what must hold, ``python -m fuzz`` searches.

Run in ``tests/``. What a search found stays in ``seeds/`` and is run by every test run.
"""
