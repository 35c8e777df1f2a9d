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
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/pressly/goose/v3"

	"github.com/minifleet/minifleet/crashpoint"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Config says where the state lives.
type Config struct {
	Path string // of the SQLite file; its folder must exist
	Copy CopyAs // what a copied database is to be from now on
	Log  *slog.Logger
	Now  func() time.Time // nil: time.Now
}

// Store is the open database. It is safe for concurrent use.
type Store struct {
	path   string
	file   fs.FileInfo // what was opened there
	lock   *flock.Flock
	write  *sql.DB // one connection
	read   *sql.DB
	log    *slog.Logger
	now    func() time.Time
	site   string
	as     CopyAs
	copied bool // see Copied
	epoch  int64
	watch  watchers

	mirror   *mirror
	requests chan *request
	quit     chan struct{} // closed by Close
	closing  sync.Once
	written  chan struct{} // closed when the writer has ended

	prepared map[string]*sql.Stmt // of the write connection; the writer's
}

// Open opens or creates the database and brings its schema up to date. The site
// id is made with the database and stays with it. The store is this process's alone
// until Close.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Path == "" {
		return nil, errors.New("database: no path given")
	}
	s := &Store{
		path: c.Path, as: c.Copy, log: c.Log, now: c.Now, mirror: newMirror(),
		requests: make(chan *request), quit: make(chan struct{}), written: make(chan struct{}), prepared: map[string]*sql.Stmt{},
	}
	go s.writeAll() // Close waits for it
	if real, err := filepath.EvalSymlinks(c.Path); err == nil {
		s.path = real // there is one lock, whatever path leads to it
	}
	if err := s.open(ctx); err != nil {
		return nil, fmt.Errorf("database %s: %w", c.Path, errors.Join(explain(err), s.Close()))
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) (err error) {
	var before owner
	if s.lock, before, err = hold(s.path); err != nil {
		return err
	}
	if err := lost(s.path, before); err != nil {
		return err
	}
	if s.file, err = createPrivate(s.path); err != nil {
		return err
	}
	crashpoint.Reached(crashpoint.StoreCreated)
	if s.write, err = openSQLite(s.path, 1, writeBusy); err != nil { // SQLite has one writer
		return err
	}
	if s.read, err = openSQLite(s.path, 4, readBusy); err != nil {
		return err
	}
	if err := s.check(ctx); err != nil {
		return err
	}
	if err := s.prepare(ctx); err != nil {
		return err
	}
	crashpoint.Reached(crashpoint.SiteStored)
	return sign(s.lock.Path(), s.site)
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
	if err := s.settle(ctx, s.as); err != nil {
		return err
	}
	if err := s.mirror.load(ctx, s.read, s.now()); err != nil {
		return err
	}
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

// Ping reports whether the database can be written. A row is really changed: SQLite
// writes nothing of an update that makes no difference.
func (s *Store) Ping(ctx context.Context) error {
	return s.change(ctx, func(tx *tx) error {
		return tx.exec(`INSERT INTO meta (name, value) VALUES ('ping', '0')
			ON CONFLICT (name) DO UPDATE SET value = CASE meta.value WHEN '0' THEN '1' ELSE '0' END`)
	})
}

// Close ends the writer and all connections, and then lets another process open the
// database.
func (s *Store) Close() error {
	s.closing.Do(func() { close(s.quit) })
	<-s.written
	var errs []error
	for _, db := range []*sql.DB{s.read, s.write} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

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
