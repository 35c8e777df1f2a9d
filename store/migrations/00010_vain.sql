-- +goose Up
-- What GitHub does not do for runners: give a job to one that listens, or let a pool register
-- any in one of its scopes.

ALTER TABLE jobs ADD COLUMN passed_over INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN passed_at BIGINT NOT NULL DEFAULT 0;

CREATE TABLE refusals (
    pool    TEXT NOT NULL,
    scope   TEXT NOT NULL,
    times   INTEGER NOT NULL,
    last_at BIGINT NOT NULL,
    reason  TEXT NOT NULL,
    PRIMARY KEY (pool, scope)
);
