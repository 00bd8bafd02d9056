"""The command line, run as users run it; most of it in this process, where it is quick."""
