"""The one writer of `request_logs`, `server_metrics` and the data plane's part of `audit_logs`.

A call leaves its row by `LogWriter.put`, which appends to a list and no more. A task of the same
event loop copies what has gathered, at most a second old. While PostgreSQL is away, or too slow,
rows go to files (`spool.py`) and are loaded when it is back; a process that was killed leaves
its files to the next one that starts, or to one that runs. Audit rows are in a file before they
count as taken, until they are committed.

Note [Exactly once]
Every row has an id from the moment it is made, its time never changes, and each table has a
unique key of the id (with the time, where it is partitioned). A batch is one transaction. So a
row is never there twice, whatever is tried again; and what is not known to be committed is tried
again until it is:

- A batch leaves memory when its COMMIT was answered, or when it is in a file. A file is removed
  when all its rows were answered for, and read again as a whole otherwise, by whoever has it then.
- An answer that got lost, a batch that was cut up to find a bad row, a loader that was killed
  between COMMIT and removal: all come back as rows of which some or all are there. COPY fails on
  the first of them (unique violation), and the batch is settled by INSERT … ON CONFLICT DO NOTHING,
  which adds those that are missing and no other. Nobody has to know which of the tries it was
  that succeeded, so no outcome and no composition of a batch has to be recorded.
- A try that PostgreSQL still works on while its successor runs holds locks on its ids: the
  successor waits for its end, then sees its rows or does not.
- Two processes never load one file: it is inherited by renaming, under a lock. Should an
  operator copy files about, the ids still decide.
- Triggers fire for rows that are inserted, and so once a row as well.

Note [Waiting for the disk]
With `synchronous_commit = off` a killed PostgreSQL forgets up to three `wal_writer_delay` of
commits that it had answered, and the writer has let go of those rows. So batches wait for the
disk, once a batch, which no call notices: `local` for request logs and metrics, which need not
wait for a replica that is slow, and `on` for the audit log.

What can be lost: request and metric rows of the last second when the gateway itself is killed
(-9), and those past GATEWAY_SPOOL_MAX_BYTES, which are counted, logged, and told in an audit row,
as are those that come when their time's partition is long gone (audit rows of then are kept aside);
audit rows of the last moments when the machine loses power, as a file is forced to the disk only
when it is closed with rows that PostgreSQL does not have. Audit rows that no file takes (a full
disk, a folder that was removed) stay in memory and go to PostgreSQL from there, so these are lost
if the gateway ends before either of the two takes them. While they wait the denials' minute goes
on and their counts grow instead of their number.
"""

from monitoring.logwriter.denials import Denial
from monitoring.logwriter.rows import AuditRow, MetricRow, RequestRow, storable
from monitoring.logwriter.writer import Backlog, LogWriter, Status

__all__ = [
    "AuditRow",
    "Backlog",
    "Denial",
    "LogWriter",
    "MetricRow",
    "RequestRow",
    "Status",
    "storable",
]
