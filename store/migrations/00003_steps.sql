-- +goose Up
-- How long the steps of a runner took on its host: "image=1200 clone=31", in microseconds.

ALTER TABLE runners ADD COLUMN took TEXT NOT NULL DEFAULT '';
