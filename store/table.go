// SPDX-License-Identifier: MIT

package store

import (
	"slices"
	"sort"
)

// table is a table's rows in memory, found by key and listed in order. The list is
// made when it is asked for after a change, and is never written to again.
type table[K comparable, V any] struct {
	key     func(*V) K
	compare func(a, b *V) int // total
	byKey   map[K]*V          // immutable values: a change puts another in their place
	order   []*V
	listed  []V // nil: out of date
}

func newTable[K comparable, V any](key func(*V) K, compare func(a, b *V) int) table[K, V] {
	return table[K, V]{key: key, compare: compare, byKey: map[K]*V{}}
}

func (t *table[K, V]) place(v *V) int {
	return sort.Search(len(t.order), func(i int) bool { return t.compare(t.order[i], v) >= 0 })
}

func (t *table[K, V]) set(v V) {
	k := t.key(&v)
	if was := t.byKey[k]; was != nil {
		if t.compare(was, &v) == 0 {
			t.order[t.place(was)], t.byKey[k], t.listed = &v, &v, nil
			return
		}
		t.remove(k)
	}
	t.order = slices.Insert(t.order, t.place(&v), &v)
	t.byKey[k], t.listed = &v, nil
}

func (t *table[K, V]) remove(k K) {
	was := t.byKey[k]
	if was == nil {
		return
	}
	at := t.place(was)
	t.order = slices.Delete(t.order, at, at+1)
	delete(t.byKey, k)
	t.listed = nil
}

// list returns all rows in order, for reading only.
func (t *table[K, V]) list() []V {
	if t.listed == nil && len(t.order) > 0 {
		t.listed = make([]V, len(t.order))
		for i, v := range t.order {
			t.listed[i] = *v
		}
	}
	return t.listed
}
