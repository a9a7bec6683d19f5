"""Every key of the mesh, with its type and meaning. No other Python module of the mesh spells these names.

Lua scripts spell some of these names again, such as `mesh:clock`. Only the tests that run the scripts would show a
difference, so change a name here and in the Lua files together.

"A by B" means: the members A of a sorted set have the scores B. "A -> B" means: the fields A of a hash have the values
B. A key with "PX" expires. In `mesh:replies:` and `mesh:submitted:`, a client's name can stand in place of {replica}.

    mesh:claim               string        "<name of the mesh> <bus>" that uses this server; always in database 0
    mesh:format              string        the newest format that a replica of this mesh has written
    mesh:epoch               counter       the last epoch granted
    mesh:lease:{n}           string, PX    "<epoch> <replica>" that holds database n; gone when the lease ends
    mesh:replica:{n}         hash, PX      roster row: class, replica, pid, public, private, since, state, filters…
    mesh:expected:{n}        string, PX    class of database n, while its holder is there or is expected back
    mesh:clock               string        the time (ms) of the latest request; no later request gets an id below it,
                                           even if the server's clock steps back
    mesh:written             zset, PX      databases that hold data, by the time (ms) at which the last key expires
    mesh:requests:{A..D}     stream        requests to any one replica of the class; group `workers`
    mesh:requests:db{n}      stream        requests to the replica that holds database n; group `workers`
    mesh:replies:{replica}   stream, PX    replies to the requests of that replica
    mesh:client:{client}     string, PX    "<host>:<pid>" of a client without a lease; gone when it has left or died
    mesh:submitted:{replica} string, PX    number and result of the last batch of requests that the replica submitted
    mesh:committed:{replica} string, PX    number and result of the last batch of transactions that it committed
    mesh:dead                stream        requests and events given up, with reason and deliveries
    mesh:books               hash          accepted, answered, expired, cancelled, dead, lost; by_hand: how many of
                                           accepted were added to a stream by hand
    mesh:paused              hash          operation -> since when and by whom it is paused
    mesh:parked:{op}         zset          requests of a paused operation, which are in mesh:later: name by time (ms) of
                                           acceptance
    mesh:lanes               set           lanes ("{op}:{value}") in which requests have or wait for a place
    mesh:lane:{lane}         list          names of the requests that wait for a place, in order; they are in mesh:later
    mesh:running:{lane}      hash          requests that have a place: name -> stream and id; or mesh:later and name,
                                           while the request waits for its next try or is parked
    mesh:rate:{lane}         string, PX    the state of a rate, as three moments in µs. The first and the third are
                                           theoretical arrival times (GCRA): the first counts all accepted requests,
                                           the third only those that have begun. The second: when it was written
    mesh:drain:{replica}     string, PX    an operator asks the replica to drain
    mesh:minutes             stream        the books, once a minute for a day
    mesh:later               zset          requests that wait: name by due time (ms of Redis's clock), or +inf
    mesh:later:{name}        hash          a request in mesh:later: its fields, its address `to`, and `ttl` (ms after
                                           the due time) or `deadline`
    mesh:later:cancelled:{attempt}  string, PX  this attempt to cancel a request has removed it. The mesh gives no
                                           request a name that begins with "cancelled:"
    mesh:once:{op}:{key}     hash, PX      an idempotency key: its request and who waits for it, or the answer
    mesh:schedules           zset          operations that run by themselves: name by next tick (ms)
    mesh:schedule:{op}       hash, PX      definition of the schedule, epoch of the replica that wrote it, next and last
                                           tick, stream and id of each request of the last tick
    mesh:operations          hash          operation that a live replica serves -> its definition, as JSON
    mesh:operations:served   hash          digest of a replica's table of operations -> the operations in it; the field
                                           `serves` of a roster row is such a digest
    mesh:audit               stream        security events and acts of operators, the last 10,000 or so
    shared:{service}:*       any           state that a service shares between replicas
    events:*                 stream        events from outside

These keys are in the bus database (REDIS_DB), except for the claim. A replica's own data are in database n:

    db{n}:class              string        the class that the database got at its first lease
    db{n}:format             string        the newest format that a holder has written there
    db{n}:left               string        set if the last holder left in order while other replicas stayed
    db{n}:written            zset, PX      the keys of the services there, by the time (ms) at which each expires
    db{n}:{service}:*        any           a service's data there

Only scripts read and write the first four of these, so Python has no constants for them.
"""

from __future__ import annotations

from functools import cache

# A value that ends with ":" is a prefix of several keys. Every other "mesh:" value is one whole key; LATER is also the
# beginning of the keys that `later` returns. A plural says nothing about this: LEASES is a prefix, and LANES is a key.
# The functions below return keys that have a variable part. Names such as ROWS and `row` belong together: prefix and
# key. A prefix such as LANE has no function, because only scripts make its whole keys.
CLAIM = "mesh:claim"
FORMAT = "mesh:format"
EPOCH = "mesh:epoch"
DEAD = "mesh:dead"
BOOKS = "mesh:books"
WRITTEN = "mesh:written"
CLOCK = "mesh:clock"
AUDIT = "mesh:audit"
MINUTES = "mesh:minutes"
PAUSED = "mesh:paused"
PARKED = "mesh:parked:"
LANES = "mesh:lanes"
LANE = "mesh:lane:"
RUNNING = "mesh:running:"
RATE = "mesh:rate:"
LATER = "mesh:later"
CANCELLED = "mesh:later:cancelled:"
ONCE = "mesh:once:"
SCHEDULES = "mesh:schedules"
SCHEDULE = "mesh:schedule:"
OPERATIONS = "mesh:operations"
SERVED = "mesh:operations:served"
SHARED = "shared:"

LEASES = "mesh:lease:"
ROWS = "mesh:replica:"
EXPECTED = "mesh:expected:"
REQUESTS = "mesh:requests:"
REPLIES = "mesh:replies:"
CLIENTS = "mesh:client:"
SUBMITTED = "mesh:submitted:"
COMMITTED = "mesh:committed:"
EVENTS = "events:"
DRAIN = "mesh:drain:"

#: The beginning of every client's name. So its keys are never those of a replica.
CLIENT_NAME_PREFIX = "client-"

#: The one consumer group of every request stream.
GROUP = "workers"

#: The classes that a mesh can have.
CLASSES = "ABCD"
#: The most databases that a mesh can lease: as many as a Redis server has by default.
MOST_DATABASES = 16

#: About how many dead letters are kept; then each new one removes the oldest. With a larger number, people could read
#: older letters, but all letters together would take more of Redis's memory.
DEAD_KEPT = 10_000
#: For how many minutes `mesh:minutes` keeps the books: a day. A larger number would show a longer past, and take more
#: of Redis's memory.
MINUTES_KEPT = 1440
#: About how many entries of the audit log are kept, about 2 MB; beyond this, new ones remove the oldest. A larger
#: number would keep acts for longer, and take more memory.
AUDIT_KEPT = 10_000


def lease(database: int) -> str:
    return f"{LEASES}{database}"


def row(database: int) -> str:
    return f"{ROWS}{database}"


def expected(database: int) -> str:
    return f"{EXPECTED}{database}"


def class_requests(cls: str) -> str:
    return f"{REQUESTS}{cls}"


def database_requests(database: int) -> str:
    return f"{REQUESTS}db{database}"


def later(name: str) -> str:
    """Return the hash of a waiting request; `name` is its name in `mesh:later`."""
    return f"{LATER}:{name}"


def parked(op: str) -> str:
    return f"{PARKED}{op}"


def once(op: str, key: str) -> str:
    return f"{ONCE}{op}:{key}"


def schedule(op: str) -> str:
    return f"{SCHEDULE}{op}"


def replies(replica: str) -> str:
    """Return the stream of replies to a replica, or to a client, with this id."""
    return f"{REPLIES}{replica}"


def client(name: str) -> str:
    """Return the key that shows the presence of a client; `name` is the id of the client."""
    return f"{CLIENTS}{name}"


def submitted(replica: str) -> str:
    """Return the key of the last batch that a replica, or a client, with this id has submitted."""
    return f"{SUBMITTED}{replica}"


def drain(replica: str) -> str:
    """Return the key with which an operator asks a replica to drain."""
    return f"{DRAIN}{replica}"


def committed(replica: str) -> str:
    """Return the key of the last batch that a replica has committed."""
    return f"{COMMITTED}{replica}"


@cache  # handlers ask for each key that they use
def own(database: int) -> str:
    """Return the prefix of every key that the holder of a database owns."""
    return f"db{database}:"


def request_streams(classes: str, database_count: int) -> list[str]:
    """Return the key of every request stream that the mesh can have."""
    return [class_requests(cls) for cls in classes] + [database_requests(n) for n in range(database_count)]
