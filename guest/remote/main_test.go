// SPDX-License-Identifier: MIT

package remote_test

import (
	"os"
	"testing"

	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(thenClean{m}) }

// thenClean removes what all tests share.
type thenClean struct{ tests interface{ Run() int } }

func (c thenClean) Run() int {
	code := c.tests.Run()
	if built != "" {
		os.RemoveAll(built)
	}
	return code
}
