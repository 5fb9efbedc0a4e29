-- Version 2: what was last put in place inside, to explain changes, and the dependencies, so that dependents are deleted first.

ALTER TABLE sandboxes ADD COLUMN guest TEXT;
ALTER TABLE sandboxes ADD COLUMN depends_on TEXT NOT NULL DEFAULT '[]';
