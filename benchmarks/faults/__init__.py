"""Faults injected into the real command line, and whether it ends equal all the same.

``python -m benchmarks.faults`` runs every command as a process of its own in its smallest settings,
undisturbed and then under each fault, gives the same command again, and compares what lies there
with the undisturbed run. It writes ``docs/reliability.json``, of which the table in
``docs/reliability.md`` is made. It needs Linux: full and read-only disks are tmpfs mounts in a
mount namespace of their own (``unshare``), which a user may have without being root.

The processes are forks of one that has imported the libraries, which costs more than the commands
themselves; those in a mount namespace are started anew.
"""
