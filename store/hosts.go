// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

const hostColumns = `id, name, slots, backends, images, os, arch, agent_version, degraded,
	revision, instance, sequence, machine, seen_at, back_at, failures, failed_at, created_at, prefetch`

func scanHost(row scanner) (fleet.Host, error) {
	var (
		h                     fleet.Host
		id, backends, images  string
		prefetch              string
		seen, failed, created int64
		back                  int64
	)
	err := row.Scan(&id, &h.Name, &h.Slots, &backends, &images, &h.OS, &h.Arch, &h.AgentVersion, &h.Degraded,
		&h.Revision, &h.Instance, &h.Sequence, &h.Machine, &seen, &back, &h.Failures, &failed, &created, &prefetch)
	if err != nil {
		return h, err
	}
	h.ID = fleet.HostID(id)
	h.SeenAt, h.BackAt = fromMicros(seen), fromMicros(back)
	h.FailedAt, h.CreatedAt = fromMicros(failed), fromMicros(created)
	if h.Prefetch, err = storedPrefetch(prefetch); err != nil {
		return h, fmt.Errorf("host %s: what it is to fetch: %w", h.Name, err)
	}
	return h, errors.Join(json.Unmarshal([]byte(backends), &h.Backends), json.Unmarshal([]byte(images), &h.Images))
}

// list stores a list of words; a nil list is an empty one.
func list(words []string) string {
	if words == nil {
		words = []string{}
	}
	b, _ := json.Marshal(words) // strings cannot fail
	return string(b)
}

// AddEnrolment permits hosts to join with a token, so many times, until it expires.
func (s *Store) AddEnrolment(ctx context.Context, e fleet.Enrolment, uses int) error {
	return s.change(ctx, func(t *tx) error {
		if err := t.exec(`DELETE FROM enrolments WHERE expires_at < $1`, micros(t.now)); err != nil {
			return err
		}
		return t.exec(`INSERT INTO enrolments (token_hash, host_name, uses_left, expires_at) VALUES ($1,$2,$3,$4)
			ON CONFLICT (token_hash) DO NOTHING`, e.TokenHash, e.HostName, uses, micros(e.ExpiresAt))
	})
}

// Enrol makes a host of whoever holds a token, or returns the one that the same
// credential made before: the answer to an earlier try may have been lost. A
// machine that comes back under its old name replaces its old credential.
func (s *Store) Enrol(ctx context.Context, tokenHash, credentialHash, name, machine string) (fleet.Host, error) {
	var host fleet.Host
	// Strangers get no further than a read: the one writer is not theirs to occupy.
	var known int
	if err := s.read.QueryRowContext(ctx, `SELECT (SELECT COUNT(*) FROM enrolments WHERE token_hash = $1) + (SELECT COUNT(*) FROM hosts WHERE credential_hash = $2)`,
		tokenHash, credentialHash).Scan(&known); err != nil {
		return host, fmt.Errorf("enrol: %w", err)
	}
	if known == 0 {
		return host, fleet.ErrToken
	}
	err := s.change(ctx, func(t *tx) error {
		var err error
		host, err = scanHost(t.row(`SELECT `+hostColumns+` FROM hosts WHERE credential_hash = $1`, credentialHash))
		if !errors.Is(err, sql.ErrNoRows) {
			return err // found, or the database's trouble
		}
		fixed, err := t.useToken(tokenHash)
		if err != nil {
			return err
		}
		if fixed != "" {
			name = fixed
		}
		old, err := scanHost(t.row(`SELECT `+hostColumns+` FROM hosts WHERE name = $1`, name))
		switch {
		case err == nil && (old.Machine != machine || fixed == ""):
			// A token that leaves the name open is no permission to replace a host.
			return fmt.Errorf("host %q: %w", name, fleet.ErrHostName)
		case err == nil:
			host = old
			t.touched.hosts[host.ID] = true
			return t.exec(`UPDATE hosts SET credential_hash = $1, instance = '', sequence = 0 WHERE id = $2`, credentialHash, string(old.ID))
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		t.changed = true
		host = fleet.Host{ID: fleet.HostID("h-" + randomID(10)), Name: name, Machine: machine, CreatedAt: t.now}
		t.touched.hosts[host.ID] = true
		return t.exec(`INSERT INTO hosts (`+hostColumns+`, credential_hash) VALUES ($1,$2,0,'[]','[]','','','','',1,'',0,$3,0,0,0,0,$4,'[]',$5)`,
			string(host.ID), name, machine, micros(t.now), credentialHash)
	})
	return host, err
}

func (t *tx) useToken(hash string) (hostName string, err error) {
	var (
		uses    int
		expires int64
	)
	err = t.row(`SELECT host_name, uses_left, expires_at FROM enrolments WHERE token_hash = $1`, hash).Scan(&hostName, &uses, &expires)
	if errors.Is(err, sql.ErrNoRows) || (err == nil && (uses < 1 || expires < micros(t.now))) {
		return "", fleet.ErrToken
	}
	if err != nil {
		return "", err
	}
	return hostName, t.exec(`UPDATE enrolments SET uses_left = uses_left - 1 WHERE token_hash = $1`, hash)
}

// HostByCredential finds the host whose credential has the hash.
func (s *Store) HostByCredential(_ context.Context, hash string) (fleet.Host, error) {
	if err := s.ended(); err != nil {
		return fleet.Host{}, err
	}
	h, ok := s.mirror.byCredential(hash)
	if !ok {
		return h, fleet.ErrNoHost
	}
	return h, nil
}

// Hello makes an instance the one that speaks for the host. The same machine may
// take over at once: its agent was restarted. Another machine may do so only when
// the host has been silent for longer than live. A repetition by the instance that
// speaks already keeps the order of its reports.
func (s *Store) Hello(ctx context.Context, id fleet.HostID, instance, machine string, facts fleet.HostFacts, live time.Duration) error {
	return s.change(ctx, func(t *tx) error {
		h, err := t.host(id)
		if err != nil {
			return err
		}
		if h.Machine != machine && h.Instance != "" && t.now.Sub(h.SeenAt) < live {
			return fmt.Errorf("host %s: %w", h.Name, fleet.ErrOtherMachine)
		}
		t.changed = true
		if err := t.saveFacts(h, facts); err != nil {
			return err
		}
		h.Instance, t.touched.hosts[id] = instance, true
		if err := t.seen(h, live); err != nil {
			return err
		}
		return t.exec(`UPDATE hosts SET sequence = CASE WHEN instance = $1 THEN sequence ELSE 0 END, instance = $1, machine = $2, seen_at = $4 WHERE id = $3`,
			instance, machine, string(id), micros(t.now))
	})
}

func (t *tx) host(id fleet.HostID) (fleet.Host, error) {
	if !t.touched.hosts[id] && !t.touched.reported[id] {
		if h, ok := t.s.mirror.host(id); ok {
			h.Revision += t.raised[id]
			return t.s.mirror.current(h), nil
		}
	}
	h, err := scanHost(t.row(`SELECT `+hostColumns+` FROM hosts WHERE id = $1`, string(id)))
	if errors.Is(err, sql.ErrNoRows) {
		return h, fmt.Errorf("host %s: %w", id, fleet.ErrNoHost)
	}
	return t.s.mirror.current(h), err
}

func (t *tx) saveFacts(h fleet.Host, f fleet.HostFacts) error {
	if sameFacts(h, f) {
		return nil
	}
	t.changed, t.touched.hosts[h.ID] = true, true
	return t.exec(`UPDATE hosts SET slots = $1, backends = $2, images = $3, os = $4, arch = $5, agent_version = $6, degraded = $7 WHERE id = $8`,
		f.Slots, list(f.Backends), list(f.Images), f.OS, f.Arch, f.AgentVersion, f.Degraded, string(h.ID))
}

func (t *tx) heard(h fleet.Host, instance string, live time.Duration) error {
	if instance == "" || h.Instance != instance {
		return fmt.Errorf("host %s: %w", h.Name, fleet.ErrSuperseded)
	}
	return t.seen(h, live)
}

// seen notes that the host was heard of. The end of a silence is a change; otherwise
// the database learns of it with whatever else is written of the host.
func (t *tx) seen(h fleet.Host, live time.Duration) error {
	now := t.now
	t.after = append(t.after, func() { t.s.mirror.note(h.ID, h.Instance, 0, now) })
	if t.now.Sub(h.SeenAt) < live {
		return nil
	}
	t.changed, t.touched.hosts[h.ID] = true, true
	return t.exec(`UPDATE hosts SET seen_at = $1, back_at = $1 WHERE id = $2`, micros(t.now), string(h.ID))
}

// Desired returns what is wanted of a host now.
func (s *Store) Desired(_ context.Context, id fleet.HostID) (fleet.Desired, error) {
	out := fleet.Desired{Site: s.site, Epoch: s.epoch}
	if err := s.ended(); err != nil {
		return out, err
	}
	var ok bool
	if out.Revision, out.Runners, out.Images, ok = s.mirror.desired(id); !ok {
		return out, fmt.Errorf("desired of host %s: %w", id, fleet.ErrNoHost)
	}
	return out, nil
}

// RemoveHost forgets a host: its credential stops working, and its runners count
// as gone.
func (s *Store) RemoveHost(ctx context.Context, id fleet.HostID) error {
	return s.change(ctx, func(t *tx) error {
		if _, err := t.host(id); err != nil {
			return err
		}
		live, err := t.runnersOn(id)
		if err != nil {
			return err
		}
		for _, r := range live {
			next := r
			next.Wanted, next.Observed, next.HoldsSlot = fleet.WantGone, fleet.ObservedGone, false
			next.Retired = "its host was removed by an operator"
			if _, err := t.saveRunner(r, next, next.Retired); err != nil {
				return err
			}
		}
		t.changed, t.hosts[id], t.touched.hosts[id] = true, true, true // whoever waits for its revision learns that it is gone
		return t.exec(`DELETE FROM hosts WHERE id = $1`, string(id))
	})
}
