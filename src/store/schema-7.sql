-- What a sandbox was last brought to, so that a listing that lags behind a start or a stop is not taken for the truth.
ALTER TABLE sandboxes ADD COLUMN state TEXT NOT NULL DEFAULT 'running';
