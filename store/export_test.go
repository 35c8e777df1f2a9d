// SPDX-License-Identifier: MIT

package store

import "database/sql"

// Pools returns the connection pools, so that tests see what holds on each
// connection.
func (s *Store) Pools() map[string]*sql.DB {
	return map[string]*sql.DB{"write": s.write, "read": s.read}
}
