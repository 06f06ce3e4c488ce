"""Decisions of the BCSS gateway: pure functions and tables, standard library only.

Nothing here does I/O, reads a clock, rolls dice or knows asyncio: time and chance come in as arguments.
"""
