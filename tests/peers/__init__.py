"""What other tools fold of the zoo, and what they break: ``python -m tests.peers [NAME ...] [--out FOLDER]``.

Every architecture goes through every peer, and what came of it is one file of JSON. Without names those are
done that have no file yet. ``python -m tests.peers --table`` adds up.

The peers have an environment of their own, which `make peers` makes; one that is not installed is recorded as
such.
"""
