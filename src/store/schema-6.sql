-- What was told of a controlled project, and to whom, so that nothing is told twice and what was not told is told later.
CREATE TABLE notified (
    source    TEXT NOT NULL,
    path      TEXT NOT NULL,
    target    TEXT NOT NULL,
    revision  TEXT NOT NULL,
    state     TEXT NOT NULL,
    at        INTEGER NOT NULL,
    PRIMARY KEY (source, path, target)
) STRICT;
