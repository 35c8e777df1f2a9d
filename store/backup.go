// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/internal/durable"
)

// Backup writes a copy of the database at path to a new file, as it is at one moment,
// whether or not a controller runs on it, and returns the copy's size. The copy is
// checked and on the disk before it gets its name.
func Backup(ctx context.Context, path, to string) (size int64, err error) {
	if _, err := os.Stat(path); err != nil {
		return 0, fmt.Errorf("database: %w", err)
	}
	if _, err := os.Lstat(to); err == nil {
		return 0, fmt.Errorf("%s exists: give the backup a name of its own", to)
	}
	// SQLite would make the file readable to all; it takes an empty one as it is.
	half, err := os.CreateTemp(filepath.Dir(to), "."+filepath.Base(to)+".*")
	if err != nil {
		return 0, fmt.Errorf("backup: %w", err)
	}
	defer half.Close()
	defer os.Remove(half.Name())
	if err := copyDatabase(ctx, path, half.Name()); err != nil {
		return 0, fmt.Errorf("back up %s: %w", path, explain(err))
	}
	if err := checkCopy(ctx, half.Name()); err != nil {
		return 0, fmt.Errorf("back up %s: %w", path, explain(err))
	}
	info, err := half.Stat()
	if err == nil {
		err = half.Sync()
	}
	if err == nil {
		crashpoint.Reached(crashpoint.BackupCopied)
		err = durable.Rename(half.Name(), to)
	}
	if err != nil {
		return 0, fmt.Errorf("backup: %w", err)
	}
	return info.Size(), nil
}

// copyDatabase reads in one transaction, which disturbs no writer.
func copyDatabase(ctx context.Context, path, to string) error {
	db, err := openPlain(path, url.Values{"mode": {"rw"}, "_pragma": {"busy_timeout(10000)"}})
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, `VACUUM INTO $1`, to)
	return err
}

// checkCopy reads all of a copy.
func checkCopy(ctx context.Context, path string) error {
	db, err := openPlain(path, url.Values{"mode": {"ro"}, "immutable": {"1"}})
	if err != nil {
		return err
	}
	defer db.Close()
	var verdict, site string
	if err := db.QueryRowContext(ctx, `PRAGMA integrity_check(1)`).Scan(&verdict); err != nil {
		return fmt.Errorf("check the copy: %w", err)
	}
	if verdict != "ok" {
		return fmt.Errorf("the copy is damaged, as the database may be: %s", verdict)
	}
	if err := db.QueryRowContext(ctx, `SELECT value FROM meta WHERE name = 'site'`).Scan(&site); err != nil {
		return errors.Join(errors.New("this is not a database of Minifleet"), err)
	}
	return nil
}

func openPlain(path string, q url.Values) (*sql.DB, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: url.PathEscape(path), RawQuery: q.Encode()}).String())
	if err == nil {
		db.SetMaxOpenConns(1)
	}
	return db, err
}
