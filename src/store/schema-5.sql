-- Values of the vault, sealed with a key that is not here.
CREATE TABLE vault (
    name        TEXT NOT NULL PRIMARY KEY,
    sealed      BLOB NOT NULL,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL
) STRICT;
