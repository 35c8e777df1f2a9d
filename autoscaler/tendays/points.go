// SPDX-License-Identifier: MIT

package tendays

import "time"

// points are what calls cost that are under way or were answered within a minute.
type points struct {
	open, sum int
	past      []charge
}

type charge struct {
	until  time.Duration
	points int
}

func costs(k call) int {
	if k == callMint || k == callDelete {
		return 5
	}
	return 1
}

// room returns when so many more points are below a limit, 0 for at once.
func (p *points) room(now time.Duration, more, limit int) time.Duration {
	for len(p.past) > 0 && p.past[0].until <= now {
		p.sum -= p.past[0].points
		p.past = p.past[1:]
	}
	over := p.open + p.sum + more - limit
	for i := 0; over > 0; i++ {
		if i == len(p.past) {
			return now + time.Minute
		}
		if over -= p.past[i].points; over <= 0 {
			return p.past[i].until
		}
	}
	return 0
}

func (p *points) charge(now time.Duration, n int) {
	p.sum += n
	p.past = append(p.past, charge{now + time.Minute, n})
}
