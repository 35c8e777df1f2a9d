// SPDX-License-Identifier: MIT

package disks_test

import (
	"testing"

	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }
