// SPDX-License-Identifier: MIT

// Package store is the controller's durable state: deliveries, jobs, hosts,
// runners with their timelines, and hashed tokens. Every change is one explicit
// transaction that sets only what it owns and compares versions; who waits for a
// change is told after the commit. It never holds a JIT config, a private key or a
// token in clear, and it decides nothing.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Config says where the state lives.
type Config struct {
	Path string // of the SQLite file; its folder must exist
	Log  *slog.Logger
	Now  func() time.Time // nil: time.Now
}

// Store is the open database. It is safe for concurrent use.
type Store struct {
	write *sql.DB // one connection: SQLite has one writer
	read  *sql.DB
	log   *slog.Logger
	now   func() time.Time
	site  string
	epoch int64
	watch watchers
}

// Open opens or creates the database and brings its schema up to date. The site
// id is made with the database and stays with it.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if err := createPrivate(c.Path); err != nil {
		return nil, err
	}
	crashpoint.Reached(crashpoint.StoreCreated)
	write, err := openSQLite(c.Path, 1)
	if err != nil {
		return nil, err
	}
	read, err := openSQLite(c.Path, 4)
	if err != nil {
		write.Close()
		return nil, err
	}
	s := &Store{write: write, read: read, log: c.Log, now: c.Now}
	if err := s.prepare(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("database %s: %w", c.Path, err)
	}
	return s, nil
}

// createPrivate makes the file readable to its owner alone before SQLite makes
// it readable to all.
func createPrivate(path string) error {
	if path == "" {
		return errors.New("database: no path given")
	}
	f, err := os.OpenFile(filepath.Clean(path), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("database: %w", err)
	}
	return errors.Join(f.Chmod(0o600), f.Close())
}

func openSQLite(path string, conns int) (*sql.DB, error) {
	q := url.Values{"_txlock": {"immediate"}}
	for _, p := range []string{"busy_timeout(2000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)"} {
		q.Add("_pragma", p)
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: url.PathEscape(path), RawQuery: q.Encode()}).String())
	if err != nil {
		return nil, fmt.Errorf("open database %s: %w", path, err)
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

func (s *Store) prepare(ctx context.Context) error {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, s.write, sub, goose.WithSlog(slog.New(slog.DiscardHandler)))
	if err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	crashpoint.Reached(crashpoint.StoreMigrated)
	return s.change(ctx, func(tx *tx) error {
		if err := tx.exec(`INSERT INTO meta (name, value) VALUES ('site', $1), ('epoch', '1') ON CONFLICT (name) DO NOTHING`, newSite()); err != nil {
			return err
		}
		var epoch string
		if err := tx.row(`SELECT value FROM meta WHERE name = 'site'`).Scan(&s.site); err != nil {
			return err
		}
		if err := tx.row(`SELECT value FROM meta WHERE name = 'epoch'`).Scan(&epoch); err != nil {
			return err
		}
		s.epoch, err = strconv.ParseInt(epoch, 10, 64)
		return err
	})
}

// newSite returns a site id: eight letters and digits, part of every runner name.
func newSite() string { return randomID(8) }

// randomID returns n characters of lower-case base 32, five bits each.
func randomID(n int) string {
	const alphabet = "abcdefghijklmnopqrstuvwxyz234567"
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		b[i] = alphabet[b[i]&31]
	}
	return string(b)
}

// Site returns the site id.
func (s *Store) Site() string { return s.site }

// Epoch returns the number that rises when an older state was restored.
func (s *Store) Epoch() int64 { return s.epoch }

// Ping reports whether the database can be written.
func (s *Store) Ping(ctx context.Context) error {
	return s.change(ctx, func(tx *tx) error {
		return tx.exec(`UPDATE meta SET value = value WHERE name = 'site'`)
	})
}

// Close ends all connections.
func (s *Store) Close() error { return errors.Join(s.read.Close(), s.write.Close()) }

// tx is a write transaction that remembers whom to tell after its commit.
type tx struct {
	*sql.Tx
	ctx     context.Context
	now     time.Time
	site    string
	hosts   map[fleet.HostID]bool // whose revision rose
	changed bool                  // something that a decision reads
}

// change runs f in one write transaction; an error rolls all of it back.
func (s *Store) change(ctx context.Context, f func(*tx) error) error {
	raw, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	t := &tx{Tx: raw, ctx: ctx, now: s.now(), site: s.site, hosts: map[fleet.HostID]bool{}}
	if err := f(t); err != nil {
		return errors.Join(err, ignoreDone(raw.Rollback()))
	}
	for id := range t.hosts {
		if err := t.exec(`UPDATE hosts SET revision = revision + 1 WHERE id = $1`, string(id)); err != nil {
			return errors.Join(err, ignoreDone(raw.Rollback()))
		}
	}
	if err := raw.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	s.watch.tell(t.hosts, t.changed)
	return nil
}

func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

func (t *tx) exec(query string, args ...any) error {
	_, err := t.ExecContext(t.ctx, query, args...)
	return err
}

func (t *tx) row(query string, args ...any) *sql.Row { return t.QueryRowContext(t.ctx, query, args...) }

// micros stores a time; the zero time is 0.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicros(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}

func bit(b bool) int64 {
	if b {
		return 1
	}
	return 0
}
