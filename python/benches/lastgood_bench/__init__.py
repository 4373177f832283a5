"""How lastgood and its peers are measured beside each other: `cargo xtask bench`.

A *way* is one manner of saving and loading, ours or a peer's (``ways``). A *state* is what is saved (``states``). A
*scenario* measures ways on a state (``scenarios``), each measurement in a process of its own (``worker``), the ways in
turn. `__main__` is the command; docs/performance.md says how to read what it prints.
"""
