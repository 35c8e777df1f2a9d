// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// maxTogether bounds how many changes share one commit, so that none waits long for
// those before it.
const maxTogether = 256

// slow is a commit that an operator should know of: all changes wait for it.
const slow = 2 * time.Second

// request is a change that waits for the writer.
type request struct {
	ctx  context.Context // of the caller: only until the change has begun
	came time.Time
	do   func(*tx) error
	done chan error // takes one
}

// errClosed is the answer to a change after Close.
var errClosed = errors.New("the store is closed")

// ended returns an error after Close: what is in memory then is nobody's truth any more.
func (s *Store) ended() error {
	select {
	case <-s.quit:
		return errClosed
	default:
		return nil
	}
}

// change runs f in a write transaction, and returns when it is durable or when nothing
// of it is left. Changes that come while one is being committed share the next commit,
// each behind a savepoint of its own: one that fails takes no other with it. A change
// that has begun is not called off.
func (s *Store) change(ctx context.Context, f func(*tx) error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("begin: %w", context.Cause(ctx))
	}
	r := &request{ctx: ctx, came: time.Now(), do: f, done: make(chan error, 1)}
	select {
	case s.requests <- r:
		return <-r.done
	case <-ctx.Done():
		return fmt.Errorf("begin: %w", context.Cause(ctx))
	case <-s.quit:
		return errClosed
	}
}

// writeAll is the writer: it alone changes the database, until Close.
func (s *Store) writeAll() {
	defer close(s.written)
	for {
		select {
		case r := <-s.requests:
			s.commit([]*request{r}, true)
		case <-s.quit:
			return
		}
	}
}

// commit carries out requests in one transaction, with those that wait by the time it
// has begun. Where the transaction as a whole fails, each is carried out on its own.
func (s *Store) commit(list []*request, more bool) {
	b, err := s.begin(list[0])
	if err != nil {
		for _, r := range list {
			r.done <- fmt.Errorf("begin: %w", explain(err))
		}
		return
	}
	for more && len(list) < maxTogether {
		select {
		case r := <-s.requests:
			list = append(list, r)
		default:
			more = false
		}
	}
	began := time.Now()
	errs, err := b.run(list)
	ran := time.Since(began)
	if err == nil {
		if err = b.raw.Commit(); err != nil {
			err = fmt.Errorf("commit: %w", err)
		}
	}
	if took := time.Since(began); took > slow {
		s.log.Warn("a commit took long", slog.Int("changes", len(list)), slog.Duration("changing", ran), slog.Duration("committing", took-ran))
	}
	if err == nil {
		s.mirror.apply(b.news)
		for _, f := range b.after {
			f()
		}
		s.watch.tell(b.hosts, b.changed)
		b.done()
		s.prepareMissed(b)
		for i, r := range list {
			r.done <- explain(errs[i])
		}
		return
	}
	err = errors.Join(explain(err), ignoreDone(b.raw.Rollback()))
	b.done()
	if len(list) == 1 {
		list[0].done <- err
		return
	}
	for _, r := range list {
		s.commit([]*request{r}, false)
	}
}

// batch is one transaction of the database.
type batch struct {
	s      *Store
	ctx    context.Context // not the callers': one that leaves must not undo the others
	raw    *sql.Tx
	done   func()               // gives the connection back
	stmts  map[string]*sql.Stmt // that were used in it
	missed []string             // that are not prepared yet

	touched touched
	raised  map[fleet.HostID]int64 // revisions
	news    news
	after   []func() // of the changes that are kept
	hosts   map[fleet.HostID]bool
	changed bool
}

func (s *Store) begin(first *request) (*batch, error) {
	raw, done, err := s.openTx(first)
	if err != nil {
		return nil, err
	}
	if err := s.inPlace(); err != nil {
		err = errors.Join(err, ignoreDone(raw.Rollback()))
		done()
		return nil, err
	}
	return &batch{
		s: s, ctx: context.WithoutCancel(first.ctx), raw: raw, done: done, stmts: map[string]*sql.Stmt{},
		touched: newTouched(), raised: map[fleet.HostID]int64{}, hosts: map[fleet.HostID]bool{},
	}, nil
}

// run carries out all requests and reads what they have changed. The second error is of
// the transaction, of which nothing can be kept then.
func (b *batch) run(list []*request) (errs []error, err error) {
	errs = make([]error, len(list))
	for i, r := range list {
		if r.ctx.Err() != nil {
			errs[i] = fmt.Errorf("begin: %w", context.Cause(r.ctx)) // it has waited for too long
			continue
		}
		if len(list) == 1 {
			if err := b.one(r); err != nil {
				return nil, err
			}
			continue
		}
		if err := b.exec(`SAVEPOINT one`); err != nil {
			return nil, err
		}
		if errs[i] = b.one(r); errs[i] != nil {
			if err := b.exec(`ROLLBACK TO one`); err != nil {
				return nil, err
			}
		}
		if err := b.exec(`RELEASE one`); err != nil {
			return nil, err
		}
	}
	b.news, err = b.look()
	return errs, err
}

// one carries out one request.
func (b *batch) one(r *request) error {
	t := &tx{batch: b, ctx: b.ctx, now: b.s.now(), site: b.s.site, hosts: map[fleet.HostID]bool{}}
	if err := r.do(t); err != nil {
		return err
	}
	for id := range t.hosts {
		if err := t.exec(`UPDATE hosts SET revision = revision + 1 WHERE id = $1`, string(id)); err != nil {
			return err
		}
	}
	for id := range t.hosts {
		b.hosts[id] = true
		b.raised[id]++
	}
	b.after = append(b.after, t.after...)
	b.changed = b.changed || t.changed
	return nil
}

func (b *batch) exec(query string) error {
	_, err := b.ExecContext(b.ctx, query)
	return err
}

// maxPrepared bounds the statements that are kept; there are some fifty.
const maxPrepared = 300

// stmt returns a statement that was prepared before, or nil: within a transaction the
// only connection is taken.
func (b *batch) stmt(query string) *sql.Stmt {
	if st := b.stmts[query]; st != nil {
		return st
	}
	st := b.s.prepared[query]
	if st == nil {
		b.missed = append(b.missed, query)
		return nil
	}
	st = b.raw.StmtContext(b.ctx, st)
	b.stmts[query] = st
	return st
}

func (s *Store) prepareMissed(b *batch) {
	for _, query := range b.missed {
		if s.prepared[query] != nil || len(s.prepared) >= maxPrepared {
			continue
		}
		if st, err := s.write.PrepareContext(b.ctx, query); err == nil { // it works without, too
			s.prepared[query] = st
		}
	}
}

// ExecContext runs a statement.
func (b *batch) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	if st := b.stmt(query); st != nil {
		return st.ExecContext(ctx, args...)
	}
	return b.raw.ExecContext(ctx, query, args...)
}

// QueryContext runs a query; its rows are read before anything else is done.
func (b *batch) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	if st := b.stmt(query); st != nil {
		return st.QueryContext(ctx, args...)
	}
	return b.raw.QueryContext(ctx, query, args...)
}

// QueryRowContext runs a query for one row.
func (b *batch) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	if st := b.stmt(query); st != nil {
		return st.QueryRowContext(ctx, args...)
	}
	return b.raw.QueryRowContext(ctx, query, args...)
}

// tx is one change, which remembers whom to tell after the commit.
type tx struct {
	*batch
	ctx     context.Context
	now     time.Time
	site    string
	hosts   map[fleet.HostID]bool // whose revision rose
	changed bool                  // something that a decision reads
	after   []func()              // once it is durable
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
