-- Version 1 of the store. Times are milliseconds since the Unix epoch, UTC. Nothing secret stands here but the digest key,
-- which lets nobody read a secret: it only makes digests of secrets worthless to who holds them without this file.

CREATE TABLE meta (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    owner      TEXT    NOT NULL,
    digest_key BLOB    NOT NULL CHECK (length(digest_key) = 32),
    created_at INTEGER NOT NULL,
    -- Counts the changes of every inventory: a project's serial is never used twice, also not after it was forgotten.
    serial     INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE projects (
    name            TEXT PRIMARY KEY,
    serial          INTEGER NOT NULL DEFAULT 0,
    manifest_digest TEXT,
    manifest_paths  TEXT    NOT NULL DEFAULT '[]',
    created_at      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE sandboxes (
    project    TEXT    NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
    name       TEXT    NOT NULL,
    provider   TEXT    NOT NULL,
    id         TEXT    NOT NULL,
    spec       TEXT    NOT NULL,
    generation INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (project, name)
) STRICT;

CREATE TABLE volumes (
    project    TEXT    NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
    name       TEXT    NOT NULL,
    provider   TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (project, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE ports (
    project   TEXT    NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
    sandbox   TEXT    NOT NULL,
    port      INTEGER NOT NULL,
    host_port INTEGER NOT NULL UNIQUE,
    PRIMARY KEY (project, sandbox, port)
) STRICT, WITHOUT ROWID;

CREATE TABLE conditions (
    project         TEXT    NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
    address         TEXT    NOT NULL,
    kind            TEXT    NOT NULL,
    status          TEXT    NOT NULL,
    last_transition INTEGER NOT NULL,
    PRIMARY KEY (project, address, kind)
) STRICT, WITHOUT ROWID;

-- The journal. An intent without `ended_at` is pending.
CREATE TABLE intents (
    project   TEXT    NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
    seq       INTEGER NOT NULL,
    id        TEXT    NOT NULL UNIQUE,
    address   TEXT    NOT NULL,
    provider  TEXT    NOT NULL,
    operation TEXT    NOT NULL,
    spec_hash TEXT,
    begun_at  INTEGER NOT NULL,
    ended_at  INTEGER,
    outcome   TEXT,
    PRIMARY KEY (project, seq)
) STRICT, WITHOUT ROWID;
CREATE INDEX pending_intents ON intents (project, seq) WHERE ended_at IS NULL;

-- Leases, events and revisions do not refer to `projects`: a lease is taken before a project is first recorded, and history
-- outlives a project.
CREATE TABLE leases (
    project     TEXT PRIMARY KEY,
    token       TEXT    NOT NULL,
    holder      TEXT    NOT NULL,
    acquired_at INTEGER NOT NULL,
    expires_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    project   TEXT    NOT NULL,
    seq       INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    address   TEXT,
    kind      TEXT    NOT NULL,
    operation TEXT    NOT NULL,
    reason    TEXT    NOT NULL,
    message   TEXT    NOT NULL,
    run       INTEGER,
    PRIMARY KEY (project, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE revisions (
    project         TEXT    NOT NULL,
    revision        INTEGER NOT NULL,
    started_at      INTEGER NOT NULL,
    ended_at        INTEGER,
    actor           TEXT    NOT NULL,
    verb            TEXT    NOT NULL,
    manifest_digest TEXT,
    git_revision    TEXT,
    changes         TEXT    NOT NULL DEFAULT '{}',
    outcome         TEXT,
    exit_code       INTEGER,
    PRIMARY KEY (project, revision)
) STRICT, WITHOUT ROWID;
