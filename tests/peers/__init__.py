"""What other tools fold of the zoo, and what they break: ``python -m tests.peers [NAME ...] [--out FOLDER]``.

Every architecture goes through every peer, and what came of it is one file of JSON. Without names those are
done that have no file yet. ``python -m tests.peers --table`` adds up.

The peers have an environment of their own; one that is not installed is recorded as such::

    python3.11 -m venv .venv-peers
    .venv-peers/bin/pip install --constraint constraints.txt --editable '.[test]'
    .venv-peers/bin/pip install --constraint constraints.txt aimet-torch==2.42.0 torchao==0.18.0
    .venv-peers/bin/python -m tests.peers
"""
