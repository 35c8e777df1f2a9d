-- +goose Up
-- How often GitHub was asked to deliver again what it does not show. How far its list of
-- deliveries was dealt with is in meta, as deliveries_of_APP_at.

CREATE TABLE redeliveries (
    guid  TEXT PRIMARY KEY,
    times INTEGER NOT NULL,
    at    BIGINT NOT NULL
);
CREATE INDEX redeliveries_at ON redeliveries (at);
