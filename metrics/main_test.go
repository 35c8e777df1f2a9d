// SPDX-License-Identifier: MIT

package metrics_test

import (
	"testing"

	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }
