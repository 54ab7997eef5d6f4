"""The engine as replicas on Ray Serve, on this machine or on many, behind one web process. An optional extra.

`RayScheduler` (scheduler.py) stands where a `Scheduler` stands in a pipeline. Each `Replica` (replica.py) is a process
with the text-to-code model and a scheduler of its own; the web process keeps the tokenizer, the painting and the
ranking. The way of one request:

 1. Serve sends it to the replica with the fewer requests of two picked at random. It waits in that replica's line,
    where visitors take turns; the visitor is passed along, so every replica is fair, each for itself.
 2. Its events come back as the replica's scheduler makes them. Where there are none for a while, the last is repeated.
 3. When its replica dies, or fails with it, it begins again at another: the same seed gives the same codes. Only the
    rows begin again. Once it was let in it is not refused any more.
 4. Closing the stream reaches the replica, where the slots are free before the next row.

A replica whose line is full refuses with QueueFullError; so does Serve, in the web process, when as many as the
replicas would take wait for one that lives. Numbers of the replicas in /metrics are at most `FRESH` seconds old, plus
the time of a call; those of requests are of now.

Where the environment variable RAY_ADDRESS names a cluster, as for Ray itself, the replicas are put there: the code and
the model must be on all its machines, at the same place. Otherwise a cluster is started here (cluster.py), which
asks for a token that nobody else has, without dashboard and statistics, and which ends with this process. See
docs/scaling.md.
"""

import os
import secrets

if "RAY_ADDRESS" not in os.environ:  # Ray reads these when it is imported; its processes have them from this one
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # its ports are open to the network
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
