-- +goose Up
-- Runner scale sets whose message queues tell pools' demand, and the jobs that they were given.

CREATE TABLE scale_sets (
    pool         TEXT PRIMARY KEY,
    scope        TEXT NOT NULL,
    name         TEXT NOT NULL,
    set_id       BIGINT NOT NULL,
    session      TEXT NOT NULL,
    last_message BIGINT NOT NULL,
    assigned     BIGINT NOT NULL,
    running      BIGINT NOT NULL,
    heard_at     BIGINT NOT NULL
);

ALTER TABLE jobs ADD COLUMN pool TEXT NOT NULL DEFAULT '';
ALTER TABLE jobs ADD COLUMN set_key TEXT NOT NULL DEFAULT '';
CREATE INDEX jobs_set_key ON jobs (set_key, pool);
