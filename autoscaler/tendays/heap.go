// SPDX-License-Identifier: MIT

package tendays

import "time"

// heap orders what is to happen by time, and what is to happen at once as it was added.
type heap struct {
	list []item
	made uint64
}

type item struct {
	at   time.Duration
	made uint64
	do   func()
}

func (h *heap) less(i, j int) bool {
	a, b := &h.list[i], &h.list[j]
	return a.at < b.at || a.at == b.at && a.made < b.made
}

func (h *heap) push(at time.Duration, do func()) {
	h.made++
	h.list = append(h.list, item{at, h.made, do})
	for i := len(h.list) - 1; i > 0 && h.less(i, (i-1)/2); i = (i - 1) / 2 {
		h.list[i], h.list[(i-1)/2] = h.list[(i-1)/2], h.list[i]
	}
}

func (h *heap) pop() item {
	last := len(h.list) - 1
	first := h.list[0]
	h.list[0], h.list[last] = h.list[last], item{}
	h.list = h.list[:last]
	for i := 0; ; {
		least := i
		for _, child := range [2]int{2*i + 1, 2*i + 2} {
			if child < last && h.less(child, least) {
				least = child
			}
		}
		if least == i {
			return first
		}
		h.list[i], h.list[least] = h.list[least], h.list[i]
		i = least
	}
}
