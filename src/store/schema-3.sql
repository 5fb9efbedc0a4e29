-- Version 3: what each run was to achieve, so that a project can be rolled back to it. Equal goals are kept once.

ALTER TABLE revisions ADD COLUMN goal TEXT;

CREATE TABLE goals (
    project TEXT NOT NULL,
    digest  TEXT NOT NULL,
    goal    TEXT NOT NULL,
    PRIMARY KEY (project, digest)
) STRICT, WITHOUT ROWID;
