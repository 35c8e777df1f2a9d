// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// createPrivate makes the file readable to its owner alone before SQLite makes
// it readable to all.
func createPrivate(path string) (fs.FileInfo, error) {
	f, err := os.OpenFile(filepath.Clean(path), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, notWritable(err)
	}
	defer f.Close()
	if err := f.Chmod(0o600); err != nil {
		return nil, notWritable(err)
	}
	return f.Stat()
}

// How long SQLite itself waits for a lock that another program holds. A reader meets one
// for moments only; a writer's wait must heed a context, so openTx does it.
const (
	readBusy  = time.Second
	writeBusy = 0
)

func openSQLite(path string, conns int, busy time.Duration) (*sql.DB, error) {
	q := url.Values{"_txlock": {"immediate"}}
	for _, p := range []string{fmt.Sprintf("busy_timeout(%d)", busy.Milliseconds()), "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)"} {
		q.Add("_pragma", p)
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: url.PathEscape(path), RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

// Where another program has the database locked, a writer tries for so long, with
// such pauses.
const (
	busyPatience = 2 * time.Second
	busyPause    = 10 * time.Millisecond
)

// openTx opens the write transaction of a request and of those that join it; done is
// called after its end. A lock of another program is waited for as long as the context
// stands, and busyPatience from when the caller came: those who queued up meanwhile
// behind one who waits try only once. The transaction itself outlives the context.
func (s *Store) openTx(r *request) (raw *sql.Tx, done func(), err error) {
	if r.ctx.Err() != nil {
		return nil, nil, context.Cause(r.ctx) // it has waited for too long
	}
	conn, err := s.write.Conn(r.ctx)
	if err != nil {
		return nil, nil, err
	}
	done = func() { conn.Close() } // gives the connection back, which cannot fail
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		raw, err := conn.BeginTx(context.WithoutCancel(r.ctx), nil)
		if err == nil {
			return raw, done, nil
		}
		if primary(err) != sqlite3.SQLITE_BUSY || r.ctx.Err() == nil && time.Since(r.came) >= busyPatience {
			done()
			return nil, nil, err
		}
		again.Reset(busyPause)
		select {
		case <-again.C:
		case <-r.ctx.Done():
			done()
			return nil, nil, fmt.Errorf("%w: %w", context.Cause(r.ctx), err)
		}
	}
}

// inPlace reports an error when the path no longer leads to the file that was opened,
// as after a backup was copied back under a controller that runs: what is written
// then would be lost with this process.
func (s *Store) inPlace() error {
	now, err := os.Stat(s.path)
	if err == nil && !os.SameFile(now, s.file) {
		err = errors.New("another file has taken its place")
	}
	if err != nil {
		return fmt.Errorf("the database that was opened is not in its place any more (%w): stop the controller before its database is moved or restored", err)
	}
	return nil
}

// checkTime bounds the look through the whole database at the start: enough for some
// gigabytes. A controller that stays away longer costs more than damage that shows
// itself, as an error, when the damaged page is first read.
const checkTime = 10 * time.Second

// check refuses a damaged database. quick_check reads every page once, and compares no
// indexes with their tables, which would take several times as long.
func (s *Store) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	began := time.Now()
	var found string
	err := s.write.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&found)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		s.log.Warn("the database is too large to be checked in full at the start", slog.Duration("checked", time.Since(began)))
		return nil
	case err != nil:
		return err
	case found != "ok":
		return fmt.Errorf("it is damaged (%s): %s", found, restore)
	}
	return nil
}

// restore is what to do about a database that is lost.
const restore = `stop the controller and restore a backup, as docs/operations.md tells under "Restore"`

func primary(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code() & 0xff
	}
	return sqlite3.SQLITE_OK
}

// advised is an error that says what to do about it.
type advised struct {
	advice string
	err    error
}

func (e *advised) Error() string { return e.advice + ": " + e.err.Error() }
func (e *advised) Unwrap() error { return e.err }

// explain adds what to do to an error of the database that an operator can do
// something about.
func explain(err error) error {
	if _, ok := errors.AsType[*advised](err); ok {
		return err
	}
	switch primary(err) {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return &advised{"it is damaged: " + restore, err}
	case sqlite3.SQLITE_FULL:
		return &advised{"its volume is full: free some space there", err}
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN:
		return notWritable(err)
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return &advised{"another program keeps it locked: end that one, such as a shell or a backup with an open transaction", err}
	case sqlite3.SQLITE_IOERR:
		return &advised{"its volume fails: look at the system's log", err}
	default:
		return err
	}
}

func notWritable(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &advised{"its folder is not there: make it, or correct the path", err}
	}
	return &advised{"it cannot be written: give the controller's user the right to write to it and to its folder", err}
}
