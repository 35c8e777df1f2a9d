// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/minifleet/minifleet/internal/durable"
)

// placeSuffix makes the name of the file beside the database that holds the same random
// id as the database does. No backup has it: a database without it, or with another's, is
// a copy that was put somewhere else, and its original may still run.
const placeSuffix = ".place"

// CopyAs says what a database that is a copy is to be from now on. Of one that is none it
// changes nothing.
type CopyAs string

// What a copy can be.
const (
	CopyUndecided CopyAs = ""         // serve, and touch no registration from before
	CopyReplaces  CopyAs = "replaces" // the original is gone for good: this is its site now
	CopyNewSite   CopyAs = "new site" // the original goes on: this is another site, without hosts and runners
)

// settle finds out whether the database is a copy, and makes of it what it is to be.
func (s *Store) settle(ctx context.Context, as CopyAs) (err error) {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ignoreDone(tx.Rollback())) }()
	var known string
	if err := tx.QueryRowContext(ctx, `SELECT value FROM meta WHERE name = 'place'`).Scan(&known); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	file := s.path + placeSuffix
	raw, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("see whether this database is a copy: %w", err)
	}
	beside := strings.TrimSpace(string(raw))
	switch {
	case known != "" && known == beside:
		return nil
	case known == "" && beside != "": // of a time before there were such files, in its place
	case known == "":
		beside = randomID(26)
		err = writePlace(file, beside)
	case as == CopyUndecided:
		s.copied = true
		return nil
	default:
		// The file first: a crash in between leaves a copy that is undecided still.
		beside = randomID(26)
		if err = writePlace(file, beside); err == nil && as == CopyNewSite {
			err = renounce(ctx, tx)
		}
	}
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO meta (name, value) VALUES ('place', $1) ON CONFLICT (name) DO UPDATE SET value = excluded.value`, beside); err != nil {
		return err
	}
	return tx.Commit()
}

// renounce gives up all that is the original's: its name, its hosts and their runners,
// whose registrations it will delete itself.
func renounce(ctx context.Context, tx *sql.Tx) error {
	if _, err := tx.ExecContext(ctx, `UPDATE meta SET value = $1 WHERE name = 'site'`, newSite()); err != nil {
		return err
	}
	for _, statement := range []string{
		`DELETE FROM hosts`, `DELETE FROM enrolments`, `DELETE FROM mints`,
		`UPDATE runners SET wanted = 'gone', observed = 'gone', registration = 'gone', holds_slot = 0, is_over = 1,
			retired = 'of the site that this database was copied from', version = version + 1 WHERE is_over = 0`,
	} {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}

// writePlace replaces the file, durably.
func writePlace(path, id string) error {
	if err := durable.WriteFile(path, []byte(id+"\n"), 0o600); err != nil {
		return notWritable(err)
	}
	return nil
}

// Copied reports whether the database is a copy of which nobody has said yet what it is
// to be: its original may run, and what both know of at GitHub is the original's.
func (s *Store) Copied() bool { return s.copied }
