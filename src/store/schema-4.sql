-- Projects that a controller keeps as a source says, and the last good revision of each.
CREATE TABLE controlled (
    project   TEXT NOT NULL PRIMARY KEY,
    source    TEXT NOT NULL,
    path      TEXT NOT NULL,
    revision  TEXT NOT NULL,
    tree      TEXT NOT NULL,
    manifest  TEXT NOT NULL,
    since     INTEGER NOT NULL,
    applied   INTEGER NOT NULL
) STRICT;
